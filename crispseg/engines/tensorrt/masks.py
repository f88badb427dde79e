"""SegRefiner's U-Net as a TensorRT engine: built into ``bundle/engines``, one profile from one picture to a batch.

Not yet run on a device.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from crispseg.bundle_masks import MaskBundle, SegRefinerInfo
from crispseg.engines import cache
from crispseg.engines.tensorrt import compat
from crispseg.engines.tensorrt.artefacts import BACKEND, FORMAT, Convert, _kept, _read, _row, _with, engine_file
from crispseg.engines.tensorrt.artefacts import environment as engine_environment
from crispseg.engines.tensorrt.build import BuildOptions, build_engine
from crispseg.engines.tensorrt.run import TensorRTEngine, open_engine
from crispseg.errors import InputError

ROLE = "unet"
_FLOATS = ("InstanceNormalization", "Softmax", "BatchNormalization")


def _info(bundle: MaskBundle) -> SegRefinerInfo:
    if not isinstance(bundle.refiner, SegRefinerInfo):
        raise InputError("bundle %s: expected SegRefiner, found CRM" % bundle.path)
    return bundle.refiner


def identity(bundle: MaskBundle, role: str, file: str, spec: Dict[str, Any], trt: Any, device: Any) -> cache.Identity:
    """Identity of the engine of one network of a mask refiner; ``spec`` as in ``artefacts.identity``."""
    facts = engine_environment(trt, device, role)
    return cache.Identity(BACKEND, role, cache.sources(bundle, file), {**spec, "format": FORMAT}, facts)  # type: ignore[arg-type]


def with_timing_cache(bundle: MaskBundle, options: BuildOptions, trt: Any, context: Any) -> BuildOptions:
    """The options with a timing cache beside the engines, unless they name one."""
    if options.timing_cache is not None:
        return options
    name = "timing-%s-sm%d.cache" % (compat.version(trt), context.info.capability)
    return _with(options, timing_cache=bundle.path / cache.FOLDER / name)


def build_mask_engine(
    bundle: MaskBundle,
    options: BuildOptions,
    convert: Convert,
    context: Any,
    *,
    trt: Any = None,
    force: bool = False,
    progress: Optional[Callable[..., None]] = None,
) -> List[Dict[str, Any]]:
    """Build the engine of a SegRefiner bundle for the device of ``context``, unless it is there.

    Args:
        bundle: checked.
        options: fp32 or fp16; without ``profiles`` one from 1 picture to the bundle's batch, best at the batch.
        convert: brings the network to the precision, see ``build_bundle``.
        context: cuda.Context of the device.
        trt: the tensorrt module; None imports it.
        force: build again what is there.
        progress: called with (done, total, text).

    Returns:
        One row, as ``build_bundle`` gives it.

    Raises:
        InputError: a CRM bundle, or int8.
        EnvironmentMismatch, UnsupportedOp: as ``build_engine``.
    """
    trt = compat.require() if trt is None else trt
    info = _info(bundle)
    if options.precision not in ("fp32", "fp16"):
        raise InputError("--precision %s: expected fp32 or fp16 for a mask refiner" % options.precision)
    cache.require_room(bundle.path)
    if not options.profiles:
        sides = (4, info.size, info.size)
        counts = (1, info.batch, info.batch)
        profiles = {"image": tuple((n, *sides) for n in counts), "t": tuple((n,) for n in counts)}
        options = _with(options, profiles=profiles)
    wanted = identity(bundle, ROLE, info.file, options.spec(), trt, context.info)
    options = with_timing_cache(bundle, options, trt, context)
    return [build_network(bundle, info.file, wanted, options, convert, trt=trt, force=force, progress=progress)]


def build_network(
    bundle: MaskBundle,
    file: str,
    wanted: cache.Identity,
    options: BuildOptions,
    convert: Convert,
    *,
    trt: Any,
    force: bool,
    progress: Optional[Callable[..., None]],
) -> Dict[str, Any]:
    """Build and store the engine of one network, unless it is there; its row. Raises as ``build_engine``."""
    kept = None if force else _kept(bundle, wanted)  # type: ignore[arg-type]
    if kept is not None:
        return _row(kept, True)
    start = time.perf_counter()
    model = _read(bundle, file)  # type: ignore[arg-type]
    converted = convert(model, options.precision)
    model = model if converted is None else converted
    nodes = ["%s (%s)" % (node.name, node.op_type) for node in model.graph.node]
    floats = [node.name for node in model.graph.node if node.op_type in _FLOATS]
    built = build_engine(
        model.SerializeToString(), options, what=wanted.role, nodes=nodes, floats=floats, progress=progress, trt=trt
    )
    facts = {**built.facts, "total_s": round(time.perf_counter() - start, 2)}
    return _row(cache.store(bundle.path, wanted, {engine_file(wanted.role): built.plan}, facts), False)


def load_mask_engine(bundle: MaskBundle, context: Any, *, precision: str = "fp16", trt: Any = None) -> MaskEngine:
    """Open the engine that ``crispseg build`` made for this device. Never builds.

    Raises:
        EnvironmentMismatch: there is none; the message has the command.
        BundleError: its file is damaged.
    """
    trt = compat.require() if trt is None else trt
    artefact = cache.find(
        bundle.path, identity(bundle, ROLE, _info(bundle).file, {"precision": precision}, trt, context.info)
    )
    plan = artefact.read(engine_file(ROLE))
    return MaskEngine(open_engine(plan, context, what=ROLE, trt=trt, advice=artefact.rebuild))


class MaskEngine:
    """The engine with the interface of ``OrtEngine``; batches of any size up to the profile's."""

    def __init__(self, engine: TensorRTEngine) -> None:
        """Takes over the engine."""
        self._engine = engine
        self.inputs, self.outputs = dict(engine.inputs), dict(engine.outputs)
        self._count = 0

    def run(self, inputs: Dict[str, np.ndarray], outputs: Optional[Sequence[str]] = None) -> Dict[str, np.ndarray]:
        """``image`` float32 [N, 4, S, S] and ``t`` int64 [N] -> ``logits``. Raises InputError outside the profile."""
        # TensorRT before 10 takes int64 inputs as int32.
        values = {name: np.ascontiguousarray(inputs[name], self.inputs[name][0]) for name in ("image", "t")}
        if len(values["t"]) != self._count:
            self._engine.set_shapes({name: value.shape for name, value in values.items()})
            self._count = len(values["t"])
        found = self._engine.run(values)["logits"]
        return {"logits": np.array(found, np.float32)}

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
