"""What the engines of all mask refiners share: identity, building one network, and opening it.

``masks_segrefiner.py`` and ``masks_crm.py`` say which networks there are and what their shapes are.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Optional

from crispseg.bundle_masks import MaskBundle
from crispseg.engines import cache
from crispseg.engines.tensorrt.artefacts import BACKEND, FORMAT, Convert, _kept, _read, _row, engine_file
from crispseg.engines.tensorrt.artefacts import environment as engine_environment
from crispseg.engines.tensorrt.build import BuildOptions, build_engine
from crispseg.engines.tensorrt.run import TensorRTEngine, open_engine
from crispseg.errors import InputError

_FLOATS = ("InstanceNormalization", "Softmax", "BatchNormalization")


def require_float(options: BuildOptions) -> None:
    """Raise InputError for int8, which no mask refiner has."""
    if options.precision not in ("fp32", "fp16"):
        raise InputError("--precision %s: expected fp32 or fp16 for a mask refiner" % options.precision)


def identity(bundle: MaskBundle, role: str, file: str, spec: Dict[str, Any], trt: Any, device: Any) -> cache.Identity:
    """Identity of the engine of one network of a mask refiner; ``spec`` as in ``artefacts.identity``."""
    facts = engine_environment(trt, device, role)
    return cache.Identity(BACKEND, role, cache.sources(bundle, file), {**spec, "format": FORMAT}, facts)  # type: ignore[arg-type]


def open_network(artefact: cache.Artefact, context: Any, trt: Any) -> TensorRTEngine:
    """The engine in an artefact, on the DLA core that it was built for. Raises BundleError, and as ``open_engine``."""
    wanted = artefact.identity
    plan = artefact.read(engine_file(wanted.role))
    return open_engine(plan, context, what=wanted.role, trt=trt, advice=artefact.rebuild, core=wanted.spec.get("dla"))


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
