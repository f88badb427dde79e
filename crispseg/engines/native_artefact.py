"""The compiled form of a refiner for the native engine: weights packed once for this CPU, and the plan of each layer.

``bundle/engines/<key>/`` holds graph.onnx (the refiner's nodes and small constants; convolution weights by shape only),
weights.bin (what the plan uses of them, in the library's layout, each at a multiple of 64 bytes) and the manifest with
the plan and the places of the weights. The key covers the file and its precision, the instruction set and the library:
another one reads another layout. The native backend runs without an artefact too and packs at load; an artefact saves
start-up time and memory. One whose key fits and that is damaged is refused, and built anew by the next build.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np

from crispseg.bundle import Bundle
from crispseg.bundle_calibration import network_file, runs_at
from crispseg.engines import cache
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_fuse import fuse_shortcuts
from crispseg.engines.native_graph import PACKED, read_graph
from crispseg.engines.native_int8 import bytes_of
from crispseg.engines.native_measure import Choice, measured, rule
from crispseg.engines.native_memory import aligned
from crispseg.engines.native_weights import FORMS, Compiled, packed_bytes, prepare
from crispseg.engines.native_winograd import ENVIRONMENT, forced
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.plugins.loader import Native

BACKEND, ROLE = "native", "refiner"
GRAPH = "graph.onnx"
LAYOUT = 5  # of weights.bin and of the facts


@dataclass(frozen=True)
class Found:
    """What there is for a bundle: the artefact, or None and why not, with the command that makes one."""

    artefact: Optional[cache.Artefact] = None
    why: str = ""


def identity(bundle: Bundle, native: Native, precision: str = "fp32") -> cache.Identity:
    """Of the refiner of a bundle, compiled for the instruction set of ``native``.

    Raises:
        BundleError: no refiner, or int8 and the bundle has no int8 refiner that belongs to it.
    """
    if bundle.refiner is None:
        raise BundleError("%s: expected a refiner to compile, found none" % bundle.path)
    if runs_at(bundle, "refiner", precision) != precision:
        raise BundleError(
            "bundle %s: precision %s: expected a calibration of the refiner, found that of the base alone; run "
            "`crispseg calibrate %s IMAGES --networks base,refiner -o NEW`, or `crispseg build %s --backend native`, "
            "which compiles the float refiner that runs with this base"
            % (bundle.path, precision, bundle.path, bundle.path)
        )
    library = Path(native.library._name)
    environment = {
        "isa": native.isa,
        "library": native.library.cs_build_info().decode("utf-8", "replace"),
        "library SHA-256": cache.file_hash(library),
        "layout": LAYOUT,
    }
    file = network_file(bundle, "refiner", precision)
    return cache.Identity(BACKEND, ROLE, cache.sources(bundle, file), {"precision": precision}, environment)


def find(bundle: Bundle, precision: str = "fp32", isa: str = "") -> Found:
    """The artefact of this bundle for this CPU; none when $CRISPSEG_WINOGRAD asks for another plan.

    Raises:
        BundleError: the one that fits has a damaged manifest; int8 without a calibration.
    """
    if forced():
        return Found(why="%s is set" % ENVIRONMENT)
    if not (bundle.path / cache.FOLDER).is_dir():
        command = cache.rebuild_command(bundle.path, cache.Identity(BACKEND, ROLE, {}, {"precision": precision}))
        return Found(why="`%s` does it once" % command)
    with Native(1, isa) as native:
        wanted = identity(bundle, native, precision)
        target = bundle.path / cache.FOLDER / wanted.key
        if target.is_dir():
            return Found(_load(target, wanted))
        try:
            return Found(cache.find(bundle.path, wanted))
        except EnvironmentMismatch as error:
            return Found(why=str(error))


def _load(target: Path, wanted: cache.Identity) -> cache.Artefact:
    try:
        return cache.load(target)
    except BundleError as error:
        what = str(error).split("; ")[0]  # its own advice is for other artefacts
        command = cache.rebuild_command(target.parent.parent, wanted)
        raise BundleError("%s; run `%s`" % (what, command)) from None


def build(
    bundle: Bundle,
    deterministic: bool = False,
    force: bool = False,
    progress: Optional[Callable[[int, Optional[int], str], None]] = None,
    precision: str = "fp32",
) -> cache.Artefact:
    """Compile the refiner of a bundle into its engines folder.

    Args:
        bundle: a loaded bundle.
        deterministic: choose by rule instead of by time, so that every build gives the same plan.
        force: build again what is there. What is damaged is built again anyway.
        progress: called with (done, all, what is being done).
        precision: "fp32", or "int8": the calibrated refiner.

    Raises:
        BundleError: no refiner, no calibration of it (int8), or a damaged one.
        InputError: the place cannot be written.
    """
    with Native(1) as native:
        wanted = identity(bundle, native, precision)
        found = None if force else _intact(bundle.path / cache.FOLDER / wanted.key)
        if found is not None and found.facts.get("deterministic") == deterministic:
            return found
        cache.require_room(bundle.path)
        path = bundle.file(network_file(bundle, "refiner", precision))
        graph = check_graph(read_graph(path, floats=False))
        names = {node.inputs["weight"] for node in graph.nodes if node.op == "SparseConv2d"}
        shapes = {name: graph.raw.constants[name].shape for name in names}
        graph, rows = bytes_of(fuse_shortcuts(graph))
        choices = rule(graph) if deterministic else measured(native, graph, progress)
        if progress:
            progress(0, None, "packing weights")
        algorithms = {choice.node: choice.algorithm for choice in choices}
        arena = _Arena(sum(_most_bytes(native, shape) for shape in shapes.values()))
        weights = prepare(native, graph, Compiled(algorithms), arena.allocate, rows)
        places = {key: [arena.offset(array), array.nbytes] for key, array in weights.packed.items()}
        facts: Dict[str, Any] = {
            "deterministic": deterministic,
            "plan": [asdict(choice) for choice in choices],
            "weights": places,
            "bytes": arena.used,
        }
        facts["sha256"] = _facts_hash(facts)
        return cache.store(bundle.path, wanted, {GRAPH: _stripped(path, shapes), PACKED: arena.content}, facts)


def _intact(target: Path) -> Optional[cache.Artefact]:
    """The artefact in a directory, all of it read; None: there is none, or it is damaged."""
    try:
        found = cache.load(target)
        found.read(GRAPH)
        read_compiled(found)
    except BundleError:
        return None
    return found


def read_compiled(artefact: cache.Artefact) -> Compiled:
    """Plan and packed weights of an artefact, mapped from its file after its hash was checked.

    Raises:
        BundleError: a file or the manifest's facts are damaged.
    """
    memory = artefact.map(PACKED)
    packed = {}
    if _facts(artefact, "sha256", str) != _facts_hash(artefact.facts):
        raise BundleError("%s: manifest: plan or weights were altered; %s" % (artefact.path, artefact.rebuild))
    for key, place in _facts(artefact, "weights", dict).items():
        good = isinstance(place, list) and len(place) == 2 and all(type(item) is int and item >= 0 for item in place)
        if not good or place[0] % 64 or place[0] + place[1] > len(memory):
            raise BundleError("%s: weight %r: expected [offset, bytes] inside of %s, found %s; %s"
                              % (artefact.path, key, PACKED, str(place)[:60], artefact.rebuild))  # fmt: skip
        packed[key] = memory[place[0] : place[0] + place[1]]
    return Compiled({choice.node: choice.algorithm for choice in plan_of(artefact)}, packed)


def _facts_hash(facts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the facts but for this hash: places that were swapped would go unnoticed otherwise."""
    content = {key: value for key, value in facts.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def plan_of(artefact: cache.Artefact) -> List[Choice]:
    """The plan in an artefact's manifest. Raises BundleError when it is none."""
    try:
        plan = [Choice(**item) for item in _facts(artefact, "plan", list)]
        if not all(isinstance(text, str) for choice in plan for text in (choice.node, choice.algorithm)):
            raise TypeError
        return plan
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


def _most_bytes(native: Native, shape: Sequence[int]) -> int:
    """Of a weight in all its forms, each begun at a multiple of 64."""
    return sum(packed_bytes(native, shape, form) + 64 for form in FORMS)


def _stripped(path: Path, shapes: Mapping[str, Sequence[int]]) -> bytes:
    """The ONNX file without portable bodies and with these weights by shape only.

    Casts that made them go too; a DequantizeLinear stays, as its scales are needed, and what it reads is by shape only.
    """
    import onnx
    from onnx import TensorProto

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    sources = {node.output[0]: node for node in graph.node
               if node.op_type in ("Cast", "DequantizeLinear") and node.output[0] in shapes}  # fmt: skip
    packed: Dict[str, TensorProto] = {}
    for name, shape in sorted(shapes.items()):
        dequantised = name in sources and sources[name].op_type == "DequantizeLinear"
        stored = sources[name].input[0] if dequantised else name
        kind = TensorProto.INT8 if dequantised else TensorProto.FLOAT
        packed[stored] = TensorProto(name=stored, dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        packed[stored].external_data.add(key="location", value=PACKED)
    casts = {name: node.input[0] for name, node in sources.items() if node.op_type == "Cast"}
    gone = {*packed, *casts.values()}
    small = onnx.ModelProto()
    small.CopyFrom(onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import,
                                   metadata_props=model.metadata_props))  # fmt: skip
    small.graph.name = graph.name
    small.graph.input.extend(graph.input)
    small.graph.output.extend(graph.output)
    small.graph.node.extend(node for node in graph.node if node.op_type != "Cast" or node.output[0] not in casts)
    small.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name not in gone)
    small.graph.initializer.extend(packed.values())
    return bytes(small.SerializeToString(deterministic=True))
