"""The compiled form of a refiner for the native engine: weights packed once for this CPU, and the plan of each layer.

``bundle/engines/<key>/`` holds graph.onnx (the refiner's nodes and small constants; convolution weights by shape only),
weights.bin (what the plan uses of them, in the library's layout, each at a multiple of 64 bytes) and the manifest with
the plan and the places of the weights. The key covers the instruction set and the library: another one reads another
layout. The native backend runs without an artefact too and packs at load; an artefact saves start-up time and memory.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np

from crispseg.bundle import Bundle
from crispseg.engines import cache
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_fuse import fuse_shortcuts
from crispseg.engines.native_graph import PACKED, read_graph
from crispseg.engines.native_measure import Choice, measured, rule
from crispseg.engines.native_memory import aligned
from crispseg.engines.native_weights import Compiled, prepare
from crispseg.engines.native_winograd import forced
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.plugins.loader import Native

BACKEND, ROLE = "native", "refiner"
GRAPH = "graph.onnx"
LAYOUT = 2  # of weights.bin and of the facts


def identity(bundle: Bundle, native: Native) -> cache.Identity:
    """Of the refiner of a bundle, compiled for the instruction set of ``native``. Raises BundleError without one."""
    if bundle.refiner is None:
        raise BundleError("%s: expected a refiner to compile, found none" % bundle.path)
    library = Path(native.library._name)
    environment = {
        "isa": native.isa,
        "library": native.library.cs_build_info().decode("utf-8", "replace"),
        "library SHA-256": cache.file_hash(library),
        "layout": LAYOUT,
    }
    return cache.Identity(BACKEND, ROLE, cache.sources(bundle, bundle.refiner.file), {"precision": "fp32"}, environment)


def find(bundle: Bundle, isa: str = "") -> Optional[cache.Artefact]:
    """The artefact of this bundle for this CPU, or None: there is none, or $CRISPSEG_WINOGRAD asks for another plan.

    Raises:
        BundleError: the one that fits has a damaged manifest.
    """
    if forced() or not (bundle.path / cache.FOLDER).is_dir():
        return None
    with Native(1, isa) as native:
        try:
            return cache.find(bundle.path, identity(bundle, native))
        except EnvironmentMismatch:
            return None


def build(
    bundle: Bundle,
    deterministic: bool = False,
    force: bool = False,
    progress: Optional[Callable[[int, Optional[int], str], None]] = None,
) -> cache.Artefact:
    """Compile the refiner of a bundle into its engines folder.

    Args:
        bundle: a loaded bundle.
        deterministic: choose by rule instead of by time, so that every build gives the same plan.
        force: build again what is there.
        progress: called with (done, all, what is being done).

    Raises:
        BundleError: no refiner, or a damaged one.
        InputError: the place cannot be written.
    """
    with Native(1) as native:
        wanted = identity(bundle, native)
        target = bundle.path / cache.FOLDER / wanted.key
        if not force and target.is_dir():
            found = cache.load(target)
            if found.facts.get("deterministic") == deterministic:
                return found
        cache.require_room(bundle.path)
        assert bundle.refiner is not None
        path = bundle.file(bundle.refiner.file)
        graph = check_graph(read_graph(path))
        names = {node.inputs["weight"] for node in graph.nodes if node.op == "SparseConv2d"}
        shapes = {name: graph.raw.constants[name].shape for name in names}
        graph = fuse_shortcuts(graph)
        choices = rule(graph) if deterministic else measured(native, graph, progress)
        if progress:
            progress(0, None, "packing weights")
        algorithms = {choice.node: choice.algorithm for choice in choices}
        arena = _Arena(sum(_most_bytes(native, *shape) for shape in shapes.values()))
        weights = prepare(native, graph, Compiled(algorithms), arena.allocate)
        places = {key: [arena.offset(array), array.nbytes] for key, array in weights.packed.items()}
        facts = {
            "deterministic": deterministic,
            "plan": [asdict(choice) for choice in choices],
            "weights": places,
            "bytes": arena.used,
        }
        return cache.store(bundle.path, wanted, {GRAPH: _stripped(path, shapes), PACKED: arena.content}, facts)


def read_compiled(artefact: cache.Artefact) -> Compiled:
    """Plan and packed weights of an artefact, mapped from its file after its hash was checked.

    Raises:
        BundleError: a file or the manifest's facts are damaged.
    """
    memory = artefact.map(PACKED)
    packed = {}
    for key, place in _facts(artefact, "weights", dict).items():
        good = isinstance(place, list) and len(place) == 2 and all(type(item) is int and item >= 0 for item in place)
        if not good or place[0] % 64 or place[0] + place[1] > len(memory):
            raise BundleError("%s: weight %r: expected [offset, bytes] inside of %s, found %s; %s"
                              % (artefact.path, key, PACKED, str(place)[:60], artefact.rebuild))  # fmt: skip
        packed[key] = memory[place[0] : place[0] + place[1]]
    return Compiled({choice.node: choice.algorithm for choice in plan_of(artefact)}, packed)


def plan_of(artefact: cache.Artefact) -> List[Choice]:
    """The plan in an artefact's manifest. Raises BundleError when it is none."""
    try:
        return [Choice(**item) for item in _facts(artefact, "plan", list)]
    except TypeError:
        raise BundleError("%s: plan: expected a list of choices; %s" % (artefact.path, artefact.rebuild)) from None


def _facts(artefact: cache.Artefact, name: str, kind: type) -> Any:
    value = artefact.facts.get(name)
    if not isinstance(value, kind):
        raise BundleError("%s: %s: expected a %s, found %s; %s"
                          % (artefact.path, name, kind.__name__, type(value).__name__, artefact.rebuild))  # fmt: skip
    return value


class _Arena:
    """One block that packed weights are laid out in, one after another. Pages that stay untouched take no memory."""

    def __init__(self, most: int) -> None:
        self._memory = aligned(most + 64)
        self.used = 0

    def allocate(self, size: int) -> np.ndarray:
        start = -(-self.used // 64) * 64
        if start + size > len(self._memory):
            raise InputError("packed weights: expected at most %d bytes" % len(self._memory))
        self.used = start + size
        return self._memory[start : self.used]

    def offset(self, array: np.ndarray) -> int:
        return int(array.ctypes.data - self._memory.ctypes.data)

    @property
    def content(self) -> memoryview:
        return memoryview(self._memory[: self.used])  # type: ignore[arg-type]


def _most_bytes(native: Native, taps: int, cin: int, cout: int) -> int:
    """Of a weight in both layouts, each begun at a multiple of 64."""
    library = native.library
    both = (
        library.cs_packed_bytes(native.handle, taps, cin, cout),
        library.cs_winograd_bytes(native.handle, cin, cout),
    )
    return sum(both) + 2 * 64


def _stripped(path: Path, shapes: Dict[str, Any]) -> bytes:
    """The ONNX file without portable bodies and with these weights by shape only; casts that made them go too."""
    import onnx
    from onnx import TensorProto

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    sources = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast" and node.output[0] in shapes
    }
    gone = {*shapes, *sources.values()}
    kept = [node for node in graph.node if node.op_type != "Cast" or node.output[0] not in shapes]
    constants = [tensor for tensor in graph.initializer if tensor.name not in gone]
    for name, shape in sorted(shapes.items()):
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=PACKED)
        constants.append(tensor)
    small = onnx.ModelProto()
    small.CopyFrom(onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import,
                                   metadata_props=model.metadata_props))  # fmt: skip
    small.graph.name = graph.name
    small.graph.input.extend(graph.input)
    small.graph.output.extend(graph.output)
    small.graph.node.extend(kept)
    small.graph.initializer.extend(constants)
    return bytes(small.SerializeToString(deterministic=True))
