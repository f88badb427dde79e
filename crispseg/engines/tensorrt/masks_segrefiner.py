"""SegRefiner's U-Net as a TensorRT engine: built into ``bundle/engines``, one profile from one picture to a batch.

Not yet run on a device.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from crispseg.bundle_masks import MaskBundle, SegRefinerInfo
from crispseg.engines import cache
from crispseg.engines.tensorrt import compat
from crispseg.engines.tensorrt.artefacts import Convert, _with, with_timing_cache
from crispseg.engines.tensorrt.build import BuildOptions
from crispseg.engines.tensorrt.masks import build_network, identity, open_network, require_float
from crispseg.engines.tensorrt.run import TensorRTEngine
from crispseg.errors import InputError

ROLE = "unet"


def _info(bundle: MaskBundle) -> SegRefinerInfo:
    if not isinstance(bundle.refiner, SegRefinerInfo):
        raise InputError("bundle %s: expected SegRefiner, found CRM" % bundle.path)
    return bundle.refiner


def build_segrefiner_engine(
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
    require_float(options)
    cache.require_room(bundle.path)
    if not options.profiles:
        sides = (4, info.size, info.size)
        counts = (1, info.batch, info.batch)
        profiles = {"image": tuple((n, *sides) for n in counts), "t": tuple((n,) for n in counts)}
        options = _with(options, profiles=profiles)
    wanted = identity(bundle, ROLE, info.file, options.spec(), trt, context.info)
    options = with_timing_cache(bundle.path, options, trt, context)
    return [build_network(bundle, info.file, wanted, options, convert, trt=trt, force=force, progress=progress)]


def load_segrefiner_engine(
    bundle: MaskBundle, context: Any, *, precision: str = "fp16", trt: Any = None
) -> SegRefinerEngine:
    """Open the engine that ``crispseg build`` made for this device. Never builds.

    Raises:
        EnvironmentMismatch: there is none; the message has the command.
        BundleError: its file is damaged.
    """
    trt = compat.require() if trt is None else trt
    artefact = cache.find(
        bundle.path, identity(bundle, ROLE, _info(bundle).file, {"precision": precision}, trt, context.info)
    )
    return SegRefinerEngine(open_network(artefact, context, trt))


class SegRefinerEngine:
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
