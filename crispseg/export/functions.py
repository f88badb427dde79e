"""A small writer for ONNX model-local functions."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, helper, numpy_helper

from crispseg.plugins.ops import DOMAIN, OPSET, Op

_REFERENCE = {
    "int": ("value_int", AttributeProto.INT),
    "float": ("value_float", AttributeProto.FLOAT),
    "floats": ("value_floats", AttributeProto.FLOATS),
}


class Body:
    """Collects the nodes of one function body; every call returns the name(s) of what it made."""

    def __init__(self, op: Op) -> None:
        """Start an empty body of ``op``: its inputs are addressed by their names in the record."""
        self.op = op
        self.nodes: list[NodeProto] = []
        self.attributes: list[str] = []
        self._made: dict[Any, str] = {}
        self._count = 0

    def name(self) -> str:
        """A name that no role of a record has."""
        self._count += 1
        return f"t{self._count}"

    def __call__(self, op_type: str, *inputs: str, out: str | Sequence[str] | None = None, **attributes: Any) -> Any:
        """Add a node. ``out``: None = one new name, a str = that name, a sequence = those names (all returned)."""
        outputs = [self.name()] if out is None else ([out] if isinstance(out, str) else list(out))
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, **attributes))
        return outputs[0] if out is None or isinstance(out, str) else outputs

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """A constant of this dtype: a list gives rank 1, a number rank 0."""
        array = np.asarray(value, dtype)
        key = (array.tobytes(), array.shape, array.dtype.str)
        if key not in self._made:
            self._made[key] = self("Constant", value=numpy_helper.from_array(array))
        return self._made[key]

    def f32(self, value: Any) -> str:
        """A float32 constant."""
        return self.const(value, np.float32)

    def attribute(self, name: str) -> str:
        """The node's attribute as a tensor: int -> int64 scalar, float -> float32 scalar, floats -> float32 [n]."""
        if name not in self._made:
            node = helper.make_node("Constant", [], [self.name()])
            field, kind = _REFERENCE[self.op.attribute(name).kind]
            attribute = node.attribute.add()
            attribute.name, attribute.ref_attr_name, attribute.type = field, name, kind
            self.nodes.append(node)
            self.attributes.append(name)
            self._made[name] = node.output[0]
        return self._made[name]

    def cast(self, x: str, dtype: str, out: str | None = None) -> str:
        """Cast to a dtype given by its numpy name."""
        return self("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), out=out)

    def vector(self, *scalars: str) -> str:
        """Int64 scalars -> int64 [n]."""
        one = self.const([1])
        return self("Concat", *[self("Reshape", s, one) for s in scalars], axis=0)

    def dim(self, x: str, axis: int) -> str:
        """Size of one axis as an int64 scalar."""
        return self("Gather", self("Shape", x), self.const(axis), axis=0)

    def rows(self, x: str, out: str) -> str:
        """Number of rows of x as ``out``, int32 [1]."""
        return self.cast(self("Slice", self("Shape", x), self.const([0]), self.const([1])), "int32", out=out)

    def columns(self, coords: str) -> tuple[str, str]:
        """Int32 coords [N,2] -> int64 y [N], x [N]."""
        wide = self.cast(coords, "int64")
        return (
            self("Gather", wide, self.const(0), axis=1),
            self("Gather", wide, self.const(1), axis=1),
        )

    def range(self, stop: str) -> str:
        """0, 1, .., stop-1 as int64 [stop]."""
        return self("Range", self.const(0), stop, self.const(1))

    def entropy(self, p: str, axis: int, keepdims: int) -> str:
        """-sum p ln(max(p, floor)) over one axis."""
        terms = self("Mul", p, self("Log", self("Max", p, self.f32(1e-5))))
        return self("Neg", self("ReduceSum", terms, self.const([axis]), keepdims=keepdims))

    def function(self, overload: str, outputs: Sequence[str]) -> FunctionProto:
        """The finished function: all inputs of the record in order, these outputs, the attributes referred to."""
        function = helper.make_function(
            DOMAIN,
            self.op.name,
            [role.name for role in self.op.inputs],
            list(outputs),
            self.nodes,
            [helper.make_opsetid("", OPSET)],
            self.attributes,
        )
        function.overload = overload
        return function
