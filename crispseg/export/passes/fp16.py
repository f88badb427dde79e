"""Cast a dense network to float16 where that is safe.

Before: a float32 network of standard operators. After: convolutions, matrix products and what lies between them compute
in float16; the operators of ``KEEP`` and the arithmetic around them stay float32, with a Cast at every border. Inputs
and outputs of the graph stay float32 unless asked. Valid on Python 3.8: a device converts before it builds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, FrozenSet, List, Optional, Set, Tuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from crispseg.errors import InputError, UnsupportedOp

MAX_HALF = 65504.0
MIN_HALF = 2.0**-14  # the least normal number; below it digits are lost


def operators(text: str) -> FrozenSet[str]:
    """Names of operators, separated by spaces."""
    return frozenset(text.split())


# Operators that are safe in float16 when their operands are: products accumulate in float32 on every device that
# matters, the others move, select or scale single values.
HALF = operators(
    """
    Conv ConvTranspose Gemm MatMul Add Sub Mul Div Neg Abs Relu LeakyRelu PRelu Clip Sigmoid Tanh HardSigmoid
    HardSwish Elu Max Min MaxPool AveragePool GlobalAveragePool GlobalMaxPool Resize Reshape Transpose Concat
    Split Slice Gather Pad Identity Squeeze Unsqueeze Expand Flatten Tile Where DepthToSpace SpaceToDepth
    ReduceMax ReduceMin Erf
    """
)
# The rest stays float32: Softmax, Exp, Log, Pow, Sqrt (entropies, normalisations), sums over many values, and
# GridSample: a grid in float16 is off by up to an eighth of a pixel at 1024 columns, and TensorRT 10.14.1 is reported
# to compute it wrongly with explicit types (pytorch/TensorRT#4074).
KEEP = operators(
    """
    Softmax LogSoftmax Exp Log Pow Sqrt Reciprocal ReduceMean ReduceSum ReduceL1 ReduceL2 ReduceSumSquare
    ReduceLogSumExp LayerNormalization InstanceNormalization BatchNormalization LpNormalization
    GroupNormalization MeanVarianceNormalization GridSample QuantizeLinear DequantizeLinear CumSum Range
    Softplus
    """
)
PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# What computes coordinates on their way to GridSample.
_ARITHMETIC = operators(
    """
    Add Sub Mul Div Neg Concat Transpose Reshape Unsqueeze Squeeze Slice Split Expand Tile Identity Gather Clip
    """
)
# Inputs that are float32 by definition, or no data at all.
_FIXED = {"Resize": (1, 2, 3), "Upsample": (1,), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)}
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


@dataclass(frozen=True)
class Converted:
    """Numbers of a conversion: nodes in float16, float nodes kept in float32 (with the reason), and casts added."""

    half: int
    kept: Dict[str, str]
    casts: int


def to_fp16(
    model: ModelProto,
    *,
    keep: FrozenSet[str] = KEEP,
    half_io: bool = False,
    keep_nodes: FrozenSet[str] = frozenset(),
    quantised: bool = False,
) -> Converted:
    """Convert in place. Nodes that the file's metadata name under "crispseg.float32" stay float32 as well.

    Args:
        model: a dense network, external data loaded, every shape static.
        keep: operators that stay float32; operators outside ``HALF`` stay so as well.
        half_io: also make the graph's float32 inputs and outputs float16.
        keep_nodes: names of further nodes that stay float32 (a sensitivity scan finds them).
        quantised: an int8 network: its Q/DQ pairs get float16 scales, so that what lies between them is float16 with
            no Cast beside a pair. Makes the model opset 19, which first has such pairs.

    Raises:
        InputError: a weight does not fit in float16; the message names it.
        UnsupportedOp: subgraphs (If, Loop, Scan), or functions.
    """
    noted = {
        name for entry in model.metadata_props if entry.key == "crispseg.float32" for name in entry.value.split("\n")
    }
    if quantised:
        to_opset_19(model)
        keep = keep - PAIRS
    return _Pass(model, keep, half_io, keep_nodes | noted).run()


class _Pass:
    def __init__(self, model: ModelProto, keep: FrozenSet[str], half_io: bool, keep_nodes: FrozenSet[str]) -> None:
        self.model, self.graph = model, model.graph
        self.keep, self.half_io, self.keep_nodes = keep, half_io, keep_nodes
        if model.functions or any(a.HasField("g") or a.graphs for n in self.graph.node for a in n.attribute):
            raise UnsupportedOp(
                "fp16: expected a dense network, found functions or subgraphs; convert its networks alone"
            )
        plain_weights(self.graph)
        self.nodes = list(self.graph.node)  # references: id() tells nodes apart for as long as these live
        self.arrays = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.types = _types(model)
        self.producer: Dict[str, NodeProto] = {}
        self.readers: Dict[str, List[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.producer.update((name, node) for name in node.output if name)
            for name in node.input:
                self.readers[name].append(node)

    def run(self) -> Converted:
        full = self.choose()
        half = {id(node) for node in self.nodes if self.computes(node) and id(node) not in full}
        self.check_weights(half)
        kept = {_title(node): full[id(node)] for node in self.nodes if id(node) in full}
        casts = self.rewrite(half)
        del self.graph.value_info[:]
        onnx.checker.check_model(self.model)
        onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True)
        return Converted(len(half), kept, casts)

    def computes(self, node: NodeProto) -> bool:
        """Whether the node takes or gives float32 data."""
        return any(self.types.get(name) == _FLOAT for name in [*self.data(node), *node.output])

    def data(self, node: NodeProto) -> List[str]:
        """Float inputs whose type follows the node's."""
        fixed = self.fixed(node)
        return [name for i, name in enumerate(node.input) if name and i not in fixed]

    def fixed(self, node: NodeProto) -> Tuple[int, ...]:
        """Inputs that keep their type."""
        return () if node.op_type in PAIRS - self.keep else _FIXED.get(node.op_type, ())

    # ---- which nodes stay ---------------------------------------------------------------------------------------

    def choose(self) -> Dict[int, str]:
        """Nodes that stay float32 -> why."""
        full: Dict[int, str] = {}
        for node in self.nodes:
            if not self.computes(node):
                continue
            reason = self.reason(node)
            if reason:
                full[id(node)] = reason
        for node in self.nodes:
            if node.op_type == "GridSample" and "GridSample" in self.keep:
                self.coordinates(node.input[1], full)
        self.islands(full)
        return full

    def reason(self, node: NodeProto) -> Optional[str]:
        if _title(node) in self.keep_nodes:
            return "asked for"
        if node.op_type in self.keep:
            return "operator"
        if node.op_type in PAIRS:
            scale = self.arrays.get(node.input[1])
            exact = scale is not None and np.array_equal(scale.astype(np.float16).astype(np.float32), scale)
            return None if exact else "scale that float16 does not hold"
        if node.op_type not in HALF or node.domain not in ("", "ai.onnx"):
            return "operator not known to be safe"
        for name in self.data(node):
            value = self.arrays.get(name)
            if value is not None and value.dtype == np.float32 and value.size == 1:
                size = abs(float(value.reshape(-1)[0]))
                if size > MAX_HALF or 0.0 < size < MIN_HALF:
                    return "constant %g" % size
        return None

    def coordinates(self, name: str, full: Dict[int, str]) -> None:
        """Everything between the network's products and a grid."""
        pending = [name]
        while pending:
            node = self.producer.get(pending.pop())
            if node is not None and node.op_type in _ARITHMETIC and id(node) not in full:
                full[id(node)] = "coordinates"
                pending.extend(node.input)

    def islands(self, full: Dict[int, str]) -> None:
        """Arithmetic between two nodes that stay, and divisions by what stayed: no rounding there either."""
        changed = True
        while changed:
            changed = False
            for node in self.nodes:
                if (
                    id(node) in full
                    or node.op_type not in _ARITHMETIC | {"Max", "Min", "Abs"}
                    or not self.computes(node)
                ):
                    continue
                sources = [self.stays(name, full) for name in self.data(node)]
                readers = [reader for name in node.output for reader in self.readers[name]]
                enclosed = any(sources) and bool(readers) and all(id(reader) in full for reader in readers)
                divides = node.op_type == "Div" and len(sources) > 1 and sources[1]
                if enclosed or divides:
                    full[id(node)] = "between nodes that stay" if enclosed else "divides by what stayed"
                    changed = True

    def stays(self, name: str, full: Dict[int, str]) -> bool:
        node = self.producer.get(name)
        return node is not None and id(node) in full

    def check_weights(self, half: Set[int]) -> None:
        for node in self.nodes:
            if id(node) not in half:
                continue
            for name in self.data(node):
                value = self.arrays.get(name)
                if value is None or value.dtype != np.float32 or not value.size:
                    continue
                largest = float(np.abs(value).max())
                if not largest <= MAX_HALF:
                    raise InputError(
                        "weight %r of node %s: expected values up to %g for float16, found %g; keep the node in "
                        "float32, or build with --precision fp32" % (name, _title(node), MAX_HALF, largest)
                    )

    # ---- the new graph ------------------------------------------------------------------------------------------

    def rewrite(self, half: Set[int]) -> int:
        """Casts at the borders; one for each tensor and direction. Returns how many."""
        graph = self.graph
        ends = {value.name for value in [*graph.input, *graph.output]}
        kind: Dict[str, int] = {}  # what a tensor is now
        for value in graph.input:
            if value.type.tensor_type.elem_type == _FLOAT:
                if self.half_io:
                    value.type.tensor_type.elem_type = _HALF
                kind[value.name] = _HALF if self.half_io else _FLOAT
        nodes: List[NodeProto] = []
        made: Dict[Tuple[str, int], str] = {}
        fresh: Dict[str, np.ndarray] = {}
        want_out = _HALF if self.half_io else _FLOAT

        def as_type(name: str, want: int) -> str:
            if self.types.get(name) != _FLOAT or not name:
                return name
            suffix = ".fp16" if want == _HALF else ".fp32"
            if name in self.arrays:
                if want == _FLOAT:
                    return name
                fresh[name + suffix] = self.arrays[name].astype(np.float16)
                return name + suffix
            if kind[name] == want:
                return name
            if (name, want) not in made:
                made[(name, want)] = name + suffix
                nodes.append(helper.make_node("Cast", [name], [name + suffix], name + suffix, to=want))
            return made[(name, want)]

        renamed: Dict[str, str] = {}
        for source in self.nodes:
            node = NodeProto.FromString(source.SerializeToString())
            to = _HALF if id(source) in half else _FLOAT
            fixed = self.fixed(node)
            for i, name in enumerate(node.input):
                name = renamed.get(name, name)
                node.input[i] = name if i in fixed else as_type(name, to)
            nodes.append(node)
            for i, name in enumerate(node.output):
                if self.types.get(name) != _FLOAT:
                    continue
                if name in ends and to != want_out:  # the graph's output keeps its name; a Cast makes it
                    inner = name + (".fp16" if to == _HALF else ".fp32")
                    node.output[i] = renamed[name] = inner
                    self.types[inner], kind[inner] = _FLOAT, to
                    nodes.append(helper.make_node("Cast", [inner], [name], name + ".cast", to=want_out))
                    made[(inner, want_out)] = name
                kind[name] = want_out if name in ends else to
        for value in graph.output:
            if value.type.tensor_type.elem_type == _FLOAT:
                value.type.tensor_type.elem_type = want_out
        used = {name for node in nodes for name in node.input}
        kept = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in used]
        kept += [numpy_helper.from_array(value, name) for name, value in sorted(fresh.items())]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.node[:]
        graph.node.extend(nodes)
        return sum(node.op_type == "Cast" for node in nodes)


def _types(model: ModelProto) -> Dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types = {t.name: t.data_type for t in inferred.graph.initializer}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        types[value.name] = value.type.tensor_type.elem_type
    return types


def to_opset_19(model: ModelProto) -> None:
    """Raise a model of opset 17 to 19, in place: reductions take their axes as an input since 18."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            if entry.version >= 19:
                return
            entry.version = 19
    model.ir_version = max(model.ir_version, 9)
    for node in model.graph.node:
        for attribute in [a for a in node.attribute if node.op_type.startswith("Reduce") and a.name == "axes"]:
            name = node.output[0] + ".axes"
            model.graph.initializer.append(numpy_helper.from_array(np.array(attribute.ints, np.int64), name))
            node.input.append(name)
            node.attribute.remove(attribute)
        if node.op_type == "Split" and len(node.input) < 2 and not any(a.name == "num_outputs" for a in node.attribute):
            node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))


def plain_weights(graph: onnx.GraphProto) -> None:
    """Constants become initialisers, and weights stored as float16 behind a Cast float32 ones. In place."""
    _constants_to_initializers(graph)
    _fold_casts(graph)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        values = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
        if node.op_type == "Constant" and values:
            graph.initializer.append(values[0])
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)


def _fold_casts(graph: onnx.GraphProto) -> None:
    """Weights that are stored as float16 behind a Cast become float32 weights."""
    tensors = {t.name: t for t in graph.initializer}
    kept = []
    for node in graph.node:
        source = tensors.get(node.input[0]) if node.op_type == "Cast" else None
        if source is None:
            kept.append(NodeProto.FromString(node.SerializeToString()))
            continue
        to = next(a.i for a in node.attribute if a.name == "to")
        value = numpy_helper.to_array(source).astype(helper.tensor_dtype_to_np_dtype(to))
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    live = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(live)


def _title(node: NodeProto) -> str:
    return node.name or next((name for name in node.output if name), node.op_type)
