"""CRM as three TensorRT engines, built into ``bundle/engines``: backbone and fusion with a profile, decoder fixed.

In fp16 the decoder stays float32, and never computes in TF32: coordinates, the 1e-6 between two reads and areas of
1e-9 are among its inputs and sums. Not yet run on a device.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np

from crispseg.bundle_masks import CrmInfo, MaskBundle
from crispseg.engines import cache
from crispseg.engines.tensorrt import compat
from crispseg.engines.tensorrt.artefacts import Convert, _with, engine_file, with_timing_cache
from crispseg.engines.tensorrt.build import BuildOptions
from crispseg.engines.tensorrt.masks import build_network, identity, open_network, require_float
from crispseg.engines.tensorrt.run import TensorRTEngine
from crispseg.errors import InputError

ROLES = ("backbone", "fusion", "decoder")
#: Input with free sides -> (smallest, best, largest) shape, by network.
Profiles = Mapping[str, Mapping[str, Any]]


def _file(bundle: MaskBundle, role: str) -> str:
    if not isinstance(bundle.refiner, CrmInfo):
        raise InputError("bundle %s: expected CRM, found SegRefiner" % bundle.path)
    return str(getattr(bundle.refiner, role))


def build_crm_engines(
    bundle: MaskBundle,
    options: BuildOptions,
    profiles: Profiles,
    convert: Convert,
    context: Any,
    *,
    trt: Any = None,
    force: bool = False,
    progress: Optional[Callable[..., None]] = None,
) -> List[Dict[str, Any]]:
    """Build the engines of a CRM bundle for the device of ``context``; those that are there already are kept.

    Args:
        bundle: checked.
        options: fp32 or fp16 (of backbone and fusion), without ``profiles``.
        profiles: network -> input -> shapes that the run time needs.
        convert: brings a network to the precision, see ``build_bundle``.
        context: cuda.Context of the device.
        trt: the tensorrt module; None imports it.
        force: build again what is there.
        progress: called with (done, total, text).

    Returns:
        One row a network, as ``build_bundle`` gives it; ``computes_in`` is fp32 for the decoder.

    Raises:
        InputError: a SegRefiner bundle, int8, or a profile of the user's.
        EnvironmentMismatch, UnsupportedOp: as ``build_engine``.
    """
    trt = compat.require() if trt is None else trt
    files = {role: _file(bundle, role) for role in ROLES}
    require_float(options)
    if options.profiles:
        raise InputError("--profile: CRM's shapes follow from the windows of its run time; leave it out")
    cache.require_room(bundle.path)
    options = with_timing_cache(bundle.path, options, trt, context)
    rows = []
    for role, file in files.items():
        own = _with(options, profiles=dict(profiles[role]))
        if role == "decoder":
            own = _with(own, precision="fp32", tf32=False, dla=None)
        # Keyed by what was asked for, so that the advice for a missing decoder names the build of all three.
        spec = {**own.spec(), "precision": options.precision, "computes_in": own.precision}
        wanted = identity(bundle, role, file, spec, trt, context.info)
        row = build_network(bundle, file, wanted, own, convert, trt=trt, force=force, progress=progress)
        rows.append({**row, "computes_in": own.precision})
    return rows


def load_crm_engines(
    bundle: MaskBundle, profiles: Profiles, context: Any, *, precision: str = "fp16", trt: Any = None
) -> Dict[str, CrmNetwork]:
    """Open the engines that ``crispseg build`` made for this device. Never builds.

    Raises:
        EnvironmentMismatch: one is missing, or made for other windows; the message has the command.
        BundleError: a file is damaged.
    """
    trt = compat.require() if trt is None else trt
    found = {}
    for role in ROLES:  # all of them before the first is opened
        shapes = {name: [list(shape) for shape in triple] for name, triple in sorted(profiles[role].items())}
        spec = {"precision": precision, "profiles": shapes}
        found[role] = cache.find(bundle.path, identity(bundle, role, _file(bundle, role), spec, trt, context.info))
    networks: Dict[str, CrmNetwork] = {}
    try:
        for role, artefact in found.items():
            engine = open_network(artefact, context, trt)
            networks[role] = CrmNetwork(engine, artefact.path / engine_file(role), context.stream())
        return networks
    except BaseException:
        for network in networks.values():
            network.close()
        raise


class CrmNetwork:
    """One engine with the interface of ``OrtEngine``: host arrays in and out, any size inside the profile."""

    def __init__(self, engine: TensorRTEngine, path: Any, stream: Any) -> None:
        """Takes over the engine; ``path``: its file, for messages."""
        self.path = path
        self._engine, self._stream = engine, stream
        self._opened = {name for name, (_, shape) in engine.inputs.items() if min(shape, default=1) < 0}
        self.inputs, self.outputs = dict(engine.inputs), dict(engine.outputs)
        self._shapes: Dict[str, Sequence[int]] = {}

    def run(self, inputs: Dict[str, np.ndarray], outputs: Optional[Sequence[str]] = None) -> Dict[str, np.ndarray]:
        """All outputs of one call, or those of ``outputs``. Raises InputError outside the profile."""
        # TensorRT before 10 takes int64 inputs as int32.
        values = {name: np.ascontiguousarray(value, self.inputs[name][0]) for name, value in inputs.items()}
        shapes = {name: values[name].shape for name in sorted(self._opened)}
        if shapes != self._shapes:
            self._shapes = {}  # as long as they are not all set
            self._engine.set_shapes(shapes)
            self._shapes = dict(shapes)
        found = self._engine.run(values, self._stream)
        return {name: np.array(found[name], np.float32) for name in outputs or self.outputs}

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
