"""A Q/DQ network in the form that ONNX Runtime's CPU kernels run in integers.

The calibrated file has its pairs where TensorRT wants them: symmetric int8, nothing between a product and its ReLU, no
pair on the result of a product. ONNX Runtime's CPU kernels want every result requantised, and a ReLU between Conv and
QuantizeLinear keeps its optimiser from fusing them: as it stands the file runs hardly faster than fp32. This pass
writes the same arithmetic with the integer operators themselves. Integers are unsigned with zero point 128, which is
int8 shifted, so they are the integers of the file. Where the file leaves the result of a product in float (before a
residual Add, before a float layer), one more rounding is needed; its range stands in the file's metadata.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

RANGES = "crispseg.ranges"
MICROSOFT = "com.microsoft"
_MIDDLE, _MOST = 128, 255
_MAX_BIAS = float(1 << 30)
# They move values: the same on integers, when both sides have one scale.
_MOVES = frozenset(
    ("MaxPool", "Concat", "Transpose", "Reshape", "Slice", "Identity", "Squeeze", "Unsqueeze", "Flatten",
     "DepthToSpace", "Resize")
)  # fmt: skip


class Quantity(NamedTuple):
    """A tensor in integers: names of the integers, the scale and the zero point."""

    tensor: str
    scale: str
    zero: str


class Ending(NamedTuple):
    """What follows a float result up to its QuantizeLinear: the activation and that node (either may be missing)."""

    name: str
    activation: Optional[NodeProto]
    quantise: Optional[NodeProto]


def is_quantised(model: ModelProto) -> bool:
    """Whether the network holds Q/DQ pairs."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def lower(model: ModelProto) -> ModelProto:
    """The network in integer operators. A model without Q/DQ pairs comes back unchanged; the model given is left alone.

    Args:
        model: opset 13 or newer, weights inside, symmetric int8 as ``crispseg calibrate`` writes it.
    """
    made = ModelProto.FromString(model.SerializeToString())
    return made if not is_quantised(made) else _Lowering(made).run()


class _Lowering:
    def __init__(self, model: ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph.node)
        self.arrays = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: Dict[str, List[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.ends = {value.name for value in self.graph.output}
        text = {entry.key: entry.value for entry in model.metadata_props}.get(RANGES, "{}")
        self.ranges = {str(name): float(value) for name, value in json.loads(text).items()}
        self.known: Dict[str, Quantity] = {}  # float tensor -> its integers
        self.made: List[NodeProto] = []
        self.gone: Set[int] = set()
        self.fresh: Dict[str, np.ndarray] = {
            "uint8.zero": np.uint8(0), "uint8.middle": np.uint8(_MIDDLE), "uint8.most": np.uint8(_MOST)
        }  # fmt: skip

    def run(self) -> ModelProto:
        for node in self.nodes:
            if id(node) in self.gone:
                continue
            step = {
                "QuantizeLinear": self.quantise, "DequantizeLinear": self.dequantise, "Conv": self.convolve,
                "Add": self.add,
            }.get(node.op_type)  # fmt: skip
            if step is None and node.op_type in _MOVES:
                step = self.move
            if step is None or not step(node):
                self.made.append(node)
        self.finish()
        return self.model

    # ---- one operator each: True when the node was replaced ------------------------------------------------------

    def quantise(self, node: NodeProto) -> bool:
        if not self.symmetric(node):
            return False
        self.made.append(
            helper.make_node("QuantizeLinear", [*node.input[:2], "uint8.middle"], list(node.output), node.name)
        )
        return True

    def dequantise(self, node: NodeProto) -> bool:
        if node.input[0] in self.arrays or not self.symmetric(node):
            return False
        self.known[node.output[0]] = Quantity(node.input[0], node.input[1], "uint8.middle")
        self.made.append(
            helper.make_node("DequantizeLinear", [*node.input[:2], "uint8.middle"], list(node.output), node.name)
        )
        return True

    def convolve(self, node: NodeProto) -> bool:
        x, weight = self.known.get(node.input[0]), self.producer.get(node.input[1])
        if x is None or weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] not in self.arrays:
            return False
        bias = self.bias(node, x, weight)
        if bias is None:
            return False
        end = self.ending(node.output[0])
        target = self.result(end)
        if target is None:
            return False
        quantity, bounds = target
        inner = quantity.tensor + (".open" if bounds else "")
        self.made.append(
            self.renamed(
                node, "QLinearConv", [*x, *weight.input[:3], quantity.scale, quantity.zero, *bias], inner
            )
        )  # fmt: skip
        self.close(end, quantity, inner, bounds)
        return True

    def add(self, node: NodeProto) -> bool:
        operands = [self.known.get(name) for name in node.input]
        end = self.ending(node.output[0])
        if None in operands or end.quantise is None:
            return False
        quantity, bounds = self.result(end) or (None, None)
        if quantity is None:
            return False
        inner = quantity.tensor + (".open" if bounds else "")
        inputs = [name for operand in operands if operand is not None for name in operand]
        self.made.append(
            helper.make_node(
                "QLinearAdd", [*inputs, quantity.scale, quantity.zero], [inner], node.name, domain=MICROSOFT
            )
        )
        self.close(end, quantity, inner, bounds)
        return True

    def move(self, node: NodeProto) -> bool:
        reader = self.only_reader(node.output[0]) if len(node.output) == 1 else None
        if reader is None or reader.op_type != "QuantizeLinear" or not self.symmetric(reader):
            return False
        count = len(node.input) if node.op_type == "Concat" else 1
        sources = [self.known.get(name) for name in node.input[:count]]
        scale = self.arrays[reader.input[1]]
        if any(s is None or s.zero != "uint8.middle" or self.arrays[s.scale] != scale for s in sources):
            return False
        if node.op_type == "Resize" and _attribute(node, "mode", b"nearest") != b"nearest":
            return False  # its integer form cuts off instead of rounding
        inputs = [s.tensor for s in sources if s is not None] + list(node.input[count:])
        self.made.append(self.renamed(node, node.op_type, inputs, reader.output[0]))
        self.gone.add(id(reader))
        return True

    # ---- parts ---------------------------------------------------------------------------------------------------

    def ending(self, name: str) -> Ending:
        reader, activation = self.only_reader(name), None
        if reader is not None and (reader.op_type == "Relu" or self.bounds(reader) is not None):
            activation, name = reader, reader.output[0]
            reader = self.only_reader(name)
        ends = reader is not None and reader.op_type == "QuantizeLinear" and self.symmetric(reader)
        return Ending(name, activation, reader if ends else None)

    def result(self, end: Ending) -> Optional[Tuple[Quantity, Optional[Tuple[str, str]]]]:
        """Where a result goes in integers, and the bounds that its activation sets. None: no range is known."""
        if end.quantise is not None:
            scale = end.quantise.input[1]
            return Quantity(end.quantise.output[0], scale, "uint8.middle"), self.limits(end, scale)
        largest = self.ranges.get(end.name)
        if largest is None:
            return None
        low = 0.0 if end.activation is None else (self.bounds(end.activation) or (0.0, 0.0))[0]
        unsigned = end.activation is not None and low == 0.0  # all 255 steps for what is never negative
        scale = end.name + ".end_scale"
        self.fresh[scale] = np.float32(max(largest / (_MOST if unsigned else _MIDDLE - 1), 2.0**-60))
        quantity = Quantity(end.name + ".end", scale, "uint8.zero" if unsigned else "uint8.middle")
        return quantity, None if unsigned or end.activation is None else self.limits(end, scale)

    def limits(self, end: Ending, scale: str) -> Optional[Tuple[str, str]]:
        if end.activation is None:
            return None
        if end.activation.op_type == "Relu":
            return "uint8.middle", "uint8.most"
        step = float(np.asarray(self.fresh.get(scale, self.arrays.get(scale))))
        names = []
        for which, bound in zip(("low", "high"), self.bounds(end.activation) or (0.0, 0.0)):
            names.append("%s.%s" % (end.name, which))
            self.fresh[names[-1]] = np.uint8(np.clip(np.rint(bound / step) + _MIDDLE, 0, _MOST))
        return names[0], names[1]

    def close(self, end: Ending, quantity: Quantity, inner: str, bounds: Optional[Tuple[str, str]]) -> None:
        """What stands behind an integer operator: the bounds of the activation, and floats where they are read."""
        if bounds:
            self.made.append(helper.make_node("Clip", [inner, *bounds], [quantity.tensor], quantity.tensor))
        if end.activation is not None:
            self.gone.add(id(end.activation))
        if end.quantise is not None:
            self.gone.add(id(end.quantise))
        else:
            self.known[end.name] = quantity
            self.made.append(
                helper.make_node("DequantizeLinear", list(quantity), [end.name], quantity.tensor + ".float")
            )

    def bias(self, node: NodeProto, x: Quantity, weight: NodeProto) -> Optional[List[str]]:
        """Names of the bias in the integers of the sum: empty without one, None when it does not fit."""
        if len(node.input) < 3 or not node.input[2]:
            return []
        value = self.arrays.get(node.input[2])
        step = self.fresh.get(x.scale, self.arrays.get(x.scale))
        if value is None or step is None:
            return None
        units = np.rint(value.astype(np.float64) / (np.float64(step) * self.arrays[weight.input[1]].astype(np.float64)))
        if np.abs(units).max(initial=0.0) > _MAX_BIAS:
            return None
        name = node.output[0] + ".bias"
        self.fresh[name] = units.astype(np.int32)
        return [name]

    def bounds(self, node: NodeProto) -> Optional[Tuple[float, float]]:
        """Bounds of a Clip with constant ones."""
        values = [self.arrays.get(name) for name in node.input[1:3]]
        if node.op_type != "Clip" or len(values) != 2 or any(v is None or v.size != 1 for v in values):
            return None
        return float(values[0].reshape(-1)[0]), float(values[1].reshape(-1)[0])  # type: ignore[union-attr]

    def symmetric(self, node: NodeProto) -> bool:
        """int8 with zero point 0 and one scale."""
        scale = self.arrays.get(node.input[1])
        zero = self.arrays.get(node.input[2]) if len(node.input) > 2 else None
        return zero is not None and zero.dtype == np.int8 and not zero.any() and scale is not None and scale.size == 1

    def only_reader(self, name: str) -> Optional[NodeProto]:
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.ends else None

    def renamed(self, node: NodeProto, operator: str, inputs: List[str], output: str) -> NodeProto:
        made = helper.make_node(operator, inputs, [output], node.name)
        made.attribute.extend(node.attribute)
        return made

    def finish(self) -> None:
        """Leave out what nothing reads any more."""
        nodes, used = [], set(self.ends)
        for node in reversed(self.made):
            if any(name in used for name in node.output):
                nodes.append(NodeProto.FromString(node.SerializeToString()))
                used.update(node.input)
        kept = [t for t in map(_copy, self.graph.initializer) if t.name in used]
        kept += [numpy_helper.from_array(np.asarray(v), n) for n, v in sorted(self.fresh.items()) if n in used]
        for field, items in (("node", nodes[::-1]), ("initializer", kept), ("value_info", [])):
            del getattr(self.graph, field)[:]
            getattr(self.graph, field).extend(items)
        if not any(entry.domain == MICROSOFT for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def _copy(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
