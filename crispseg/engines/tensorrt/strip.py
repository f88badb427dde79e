"""The TensorRT front end: a refiner of the op contract -> the form that the plugins read. In memory, before parsing.

The portable bodies go (from 9.0 to 10.6 a model-local function always wins over a plugin of the same name:
NVIDIA/TensorRT#4113), and every op gets what plugins/tensorrt/core/params.h describes: bit masks of its connected
tensors, types, padded widths, weights packed for the kernels, bytes as int32 words. Convolutions with x_scale become
int8 ones; what their rows are is decided in ``rows.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from crispseg.engines.int8_weights import fold_dequantize
from crispseg.engines.native_graph import RawNode
from crispseg.engines.tensorrt.rows import FP16, FP32, INT8, Int8Rows, Rows, identity, plain_rows, plan_int8, spread
from crispseg.errors import UnsupportedOp
from crispseg.plugins.ops import DOMAIN, PLUGIN_ATTRIBUTES, check_attributes, check_connections, feature_width
from crispseg.plugins.quantise import quantise_weight

TYPES = {"fp32": FP32, "fp16": FP16, "int8": FP16}
# Scratch with which a convolution splits long sums over few rows; TensorRT has one workspace for all layers.
SCRATCH = 40 << 20
# (type, fp32 weight [K,cin,cout]) -> the kernels' bytes: csg_pack_weight.
Pack = Callable[[int, np.ndarray], bytes]
_WEIGHTS = ("w1", "b1", "w2", "b2", "w3", "b3", "w4", "b4")


@dataclass(frozen=True)
class Stripped:
    """``nodes``: "name (operator)" of every node; ``plugins``, ``floats``: names of those that are plugins, and of
    those of a dense network that compute in fp32."""  # noqa: D209

    model: ModelProto
    nodes: Tuple[str, ...]
    plugins: Tuple[str, ...]
    floats: Tuple[str, ...] = ()


def strip_refiner(model: ModelProto, precision: str, pack: Pack, capacity: int = 0, scratch: int = SCRATCH) -> Stripped:
    """Rewrite a refiner for the plugins; the model given is left alone.

    Args:
        model: as exported (external data loaded), with or without bodies.
        precision: "fp32" or "fp16": rows and weights between the ops, but for what the file has as int8. Logits and
            the ensembler stay fp32. "int8" stands for fp16 there, and wants an int8 file.
        pack: weights -> bytes of the kernels.
        capacity: most active pixels, 0 = as exported.
        scratch: bytes of workspace that a convolution may use; at most what the builder allows a layer.

    Raises:
        UnsupportedOp: a node outside the contract, or one whose weights are not in the file.
    """
    if precision not in TYPES:
        raise UnsupportedOp("refiner: precision %s: expected %s" % (precision, ", ".join(TYPES)))
    if precision == "int8" and not any(item.name == "x_scale" for node in model.graph.node for item in node.attribute):
        raise UnsupportedOp(
            "refiner: precision int8: expected convolutions with x_scale, found none; run `crispseg calibrate`, or use "
            "--precision fp16"
        )
    return _Strip(model, TYPES[precision], pack, capacity, scratch).run()


def describe(model: ModelProto) -> Stripped:
    """A dense network as it is, with what messages and weak typing need."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*inferred.graph.value_info, *inferred.graph.output]}
    floats = [
        _title(node)
        for node in model.graph.node
        if node.op_type not in ("Cast", "Constant") and any(kinds.get(n) == TensorProto.FLOAT for n in node.output)
    ]
    return Stripped(model, tuple("%s (%s)" % (_title(n), n.op_type) for n in model.graph.node), (), tuple(floats))


def words(nbytes: int) -> int:
    """int32 words that hold so many bytes."""  # noqa: D403
    return -(-nbytes // 4)


class _Strip:
    def __init__(self, model: ModelProto, kind: int, pack: Pack, capacity: int, scratch: int) -> None:
        self.source, self.kind, self.pack, self.capacity, self.scratch = model, kind, pack, capacity, scratch
        self.arrays: Dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.rows: Dict[str, Rows] = {}
        self.orders: Dict[str, str] = {}  # output `up` of a DownMap -> its output `order`
        self.columns: Dict[str, int] = {}  # real columns of logits rows
        self.size = (0, 0)
        self.nodes: List[NodeProto] = []
        self.initializers: Dict[str, TensorProto] = {}
        self.widths = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
        self.up_maps = _up_maps(model)
        self.counts: Dict[str, str] = {}  # rows -> how many are real
        self.copies: Dict[Tuple[str, float], str] = {}  # (float rows, scale) -> their int8 copy
        self.int8 = Int8Rows()
        self.handlers: Dict[str, Callable[..., Any]] = {
            "SelectPixels": self.select,
            "PixelFeatures": self.features,
            "LogitsAt": self.logits_at,
            "SubmanifoldMap": self.submanifold,
            "DownMap": self.down_map,
            "SparseConv2d": self.convolution,
            "EnsembleLogits": self.ensemble,
            "ScatterLabels": self.scatter,
        }

    def run(self) -> Stripped:
        ops = [node for node in self.source.graph.node if node.domain == DOMAIN or node.op_type == "Concat"]
        self.int8 = plan_int8([_raw(node) for node in ops], [value.name for value in self.source.graph.output])
        for node in self.source.graph.node:
            self.node(node)
        graph = helper.make_graph(
            self.nodes, "refiner", self.ports(self.source.graph.input), self.ports(self.source.graph.output),
            list(self.initializers.values()),
        )  # fmt: skip
        # IR 8 is the one of opset 17: what IR 10 has on top (overloads of functions) is gone.
        made = ModelProto(ir_version=min(8, self.source.ir_version), producer_name=self.source.producer_name)
        made.graph.CopyFrom(graph)
        made.opset_import.extend(self.source.opset_import)
        made.metadata_props.extend(self.source.metadata_props)
        onnx.checker.check_model(made)
        texts = tuple("%s (%s)" % (_title(node), node.op_type) for node in made.graph.node)
        return Stripped(made, texts, tuple(node.name for node in made.graph.node if node.domain == DOMAIN))

    def node(self, node: NodeProto) -> None:
        where = "node %r" % _title(node)
        if node.domain != DOMAIN:
            if node.op_type == "Cast" and node.input[0] in self.arrays:  # weights stored as float16
                self.arrays[node.output[0]] = self.arrays[node.input[0]].astype(np.float32)
            elif node.op_type == "Concat":
                self.concat(node, where)
            elif node.op_type == "DequantizeLinear":  # weights stored as int8
                self.arrays[node.output[0]] = fold_dequantize(node, self.arrays, where)[0]
            else:
                raise UnsupportedOp("%s: %s is no op of a refiner; export it again" % (where, node.op_type))
            return
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        attributes = check_attributes(node.op_type, given, where)
        ins, outs = check_connections(node.op_type, node.input, node.output, attributes, where)
        inputs, outputs, extra = self.handlers[node.op_type](ins, outs, attributes, where)
        self.emit(_title(node), node.op_type, inputs, outputs, {**attributes, **extra})

    def emit(
        self, title: str, op: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Dict[str, Any]
    ) -> None:
        """Add the plugin node: connected tensors without gaps, and which they are as bits."""
        attributes = dict(attributes, inputs=_bits(inputs), outputs=_bits(outputs), **PLUGIN_ATTRIBUTES)
        attributes = {name: list(v) if isinstance(v, tuple) else v for name, v in attributes.items()}
        connected = [[name for name in names if name] for names in (inputs, outputs)]
        made = helper.make_node(op, connected[0], connected[1], title, domain=DOMAIN)
        # Not as keywords of make_node, which has arguments of its own called inputs and outputs.
        made.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))
        self.nodes.append(made)

    # ---- ops: -> (inputs in table order, outputs in table order, added attributes) --------------------------------

    def select(self, ins: Any, outs: Any, attributes: Any, where: str) -> Any:
        self.size = (attributes["height"], attributes["width"])
        self.capacity = min(self.capacity or attributes["capacity"], self.size[0] * self.size[1])
        outputs = [outs[name] for name in ("labels", "coords", "count", "found", "confidence")]
        return [ins["logits"]], outputs, {"logits_type": FP32, "capacity": self.capacity}

    def features(self, ins: Any, outs: Any, attributes: Any, where: str) -> Any:
        classes = self.columns.get(ins["yi"], 0)
        columns = self.int8.columns(self.kind, [outs["x"]])
        rows = plain_rows(self.kind, feature_width(attributes["features"], classes), columns)
        self.rows[outs["x"]], self.counts[outs["x"]] = rows, ins["count"]
        extra = {"columns": len(rows.layout), "x_type": rows.kind}
        return [ins[name] for name in ("image", "coords", "count", "yi")], [outs["x"]], extra

    def logits_at(self, ins: Any, outs: Any, attributes: Any, where: str) -> Any:
        self.columns[outs["yi"]] = self.widths.get(ins["logits"], [0, 0])[1]
        return [ins[name] for name in ("logits", "coords", "count")], [outs["yi"]], {"logits_type": FP32}

    def submanifold(self, ins: Any, outs: Any, attributes: Any, where: str) -> Any:
        return [ins["coords"], ins["count"]], [outs["map"]], {}

    def down_map(self, ins: Any, outs: Any, attributes: Any, where: str) -> Any:
        outputs = [outs[name] for name in ("coords_out", "count_out", "down", "up")]
        order = outs["up"] + ".order" if outs["up"] in self.up_maps else ""
        if order:
            self.orders[outs["up"]] = order
        return [ins["coords"], ins["count"]], outputs + [order], {"capacity_out": 0}

    def convolution(self, ins: Any, outs: Any, attributes: Any, where: str) -> Any:
        x = self.rows.get(ins["x"])
        if x is None:
            raise UnsupportedOp("%s: input x %r is not made by an op of the contract" % (where, ins["x"]))
        weight = np.asarray(self.array(ins["weight"], where), np.float32)
        taps, cin, cout = weight.shape
        if max(x.layout) >= cin or sum(column >= 0 for column in x.layout) != cin:
            raise UnsupportedOp("%s: expected %d input columns, found %d" % (where, cin, 1 + max(x.layout)))
        x_scale, x_name = attributes.pop("x_scale"), ins["x"]
        if x_scale and x.kind != INT8:
            x_name, x = self.as_int8(x_name, x_scale)
        residual = self.rows.get(ins["residual"])
        names = {role: outs[role] for role in ("y", "z1", "z2") if outs[role]}
        # The classifier's rows are logits: fp32, no padding. Everything else keeps the type of the network.
        final = not attributes["relu"] and residual is None and list(names) == ["y"] and self.is_logits(outs["y"])
        kind = FP32 if final else self.kind
        kinds = {role: INT8 if name in self.int8.scales else kind for role, name in names.items()}
        out = plain_rows(kind, cout, 0 if final else self.int8.columns(kind, list(names.values())))
        if residual is not None:
            out = Rows(kind, residual.layout)  # added column by column
        if sum(column >= 0 for column in out.layout) != cout:
            raise UnsupportedOp("%s: expected a residual of %d columns" % (where, cout))
        padded = spread(spread(weight, 1, x.layout), 2, out.layout)
        inputs = [x_name, ins["map"], ins["count"], self.packed(ins["weight"], x.kind, padded)]
        inputs += [self.vector(ins["bias"], out.layout, where), ins["residual"]]
        inputs += [self.vector(ins[name], out.layout, where) for name in ("scale1", "shift1", "scale2", "shift2")]
        inputs += [self.dequant(ins["weight"], padded, x_scale) if x_scale else "", self.orders.get(ins["map"], "")]
        extra = {"taps": taps, "cin": len(x.layout), "cout": len(out.layout), "packed": 1, "x_type": x.kind,
                 "residual_type": residual.kind if residual else FP32, "workspace": self.scratch}  # fmt: skip
        for role in ("y", "z1", "z2"):
            extra[role + "_type"] = kinds.get(role, kind)
        for role, name in names.items():
            self.rows[name], self.counts[name] = Rows(kinds[role], out.layout), ins["count"]
            if kinds[role] == INT8:
                extra[role + "_quant"] = float(self.int8.scales[name])
        return inputs, [outs[role] for role in ("y", "z1", "z2")], extra

    def as_int8(self, name: str, scale: float) -> Tuple[str, Rows]:
        """An int8 copy of float rows, made by a convolution whose weight is the identity (exact in fp16 and fp32)."""
        if (name, scale) not in self.copies:
            x, made = self.rows[name], "%s.int8.%d" % (name, len(self.copies))
            out = plain_rows(INT8, sum(column >= 0 for column in x.layout))
            inputs = [name, "", self.counts[name], self.packed(made, x.kind, identity(x.layout, out.layout))]
            extra = {"relu": 0, "taps": 1, "cin": len(x.layout), "cout": len(out.layout), "packed": 1, "x_type": x.kind,
                     "residual_type": FP32, "y_type": INT8, "z1_type": INT8, "z2_type": INT8, "y_quant": float(scale),
                     "workspace": self.scratch}  # fmt: skip
            self.emit(made, "SparseConv2d", inputs, [made], extra)
            self.rows[made], self.counts[made], self.copies[name, scale] = out, self.counts[name], made
        made = self.copies[name, scale]
        return made, self.rows[made]

    def ensemble(self, ins: Any, outs: Any, attributes: Any, where: str) -> Any:
        yo = self.rows.get(ins["yo"], Rows(FP32, ()))
        inputs, hidden = [ins["yi"], ins["yo"], ins["count"]], 0
        if attributes["mode"] == "gated":
            parts = [np.asarray(self.array(ins[name], where), np.float32) for name in _WEIGHTS]
            hidden = parts[0].shape[0]
            name = outs["ye"] + ".gate"
            self.constant(name, np.concatenate([part.ravel() for part in parts]))
            inputs.append(name)
        self.columns[outs["ye"]] = self.columns.get(ins["yi"], 0)
        return inputs, [outs["ye"]], {"hidden": hidden, "yo_type": yo.kind}

    def scatter(self, ins: Any, outs: Any, attributes: Any, where: str) -> Any:
        inputs = [ins[name] for name in ("labels", "confidence", "coords", "count", "ye")]
        size = {"height": self.size[0], "width": self.size[1]}
        return inputs, [outs["labels_out"], outs["confidence_out"]], size

    def concat(self, node: NodeProto, where: str) -> None:
        """Columns side by side: the padding stays where it is, the weights of the reader follow."""
        parts = [self.rows.get(name) for name in node.input]
        axis = [a.i for a in node.attribute if a.name == "axis"]
        if axis not in ([1], [-1]) or any(part is None for part in parts):
            raise UnsupportedOp("%s: expected a Concat of rows along axis 1" % where)
        layout: List[int] = []
        base = 0
        for part in parts:
            assert part is not None
            layout += [column + base if column >= 0 else -1 for column in part.layout]
            base += 1 + max(part.layout)
        self.rows[node.output[0]] = Rows(parts[0].kind if parts[0] else self.kind, tuple(layout))
        self.counts[node.output[0]] = self.counts[node.input[0]]
        made = helper.make_node("Concat", list(node.input), list(node.output), _title(node), axis=1)
        self.nodes.append(made)

    # ---- constants ------------------------------------------------------------------------------------------------

    def array(self, name: str, where: str) -> np.ndarray:
        if name not in self.arrays:
            raise UnsupportedOp("%s: expected the values of %r in the file; export it again" % (where, name))
        return self.arrays[name]

    def vector(self, name: str, layout: Sequence[int], where: str) -> str:
        """Per-channel values in the layout of the output; equal layouts share one constant."""
        if not name:
            return ""
        values = np.asarray(self.array(name, where), np.float32)
        stored = name if len(layout) == len(values) else "%s.%d" % (name, len(layout))
        return self.constant(stored, spread(values, 0, layout))

    def packed(self, name: str, kind: int, weight: np.ndarray) -> str:
        data = self.pack(kind, np.ascontiguousarray(weight, np.float32))
        data += b"\0" * (-len(data) % 4)
        return self.constant("%s.packed" % name, np.frombuffer(data, "<i4"))

    def dequant(self, name: str, weight: np.ndarray, x_scale: float) -> str:
        """Value of one step of the integer sum, by output column."""
        return self.constant("%s.dequant" % name, quantise_weight(weight)[1] * np.float32(x_scale))

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add an initialiser; the same name with other content gets a number."""
        unique, number = name, 1
        made = numpy_helper.from_array(np.ascontiguousarray(value), unique)
        while unique in self.initializers and self.initializers[unique] != made:
            unique, number = "%s_%d" % (name, number), number + 1
            made = numpy_helper.from_array(np.ascontiguousarray(value), unique)
        self.initializers[unique] = made
        return unique

    def is_logits(self, name: str) -> bool:
        """Whether this is what the ensembler takes from the network."""
        return any(
            node.op_type == "EnsembleLogits" and node.domain == DOMAIN and node.input[1] == name
            for node in self.source.graph.node
        )

    def ports(self, values: Any) -> List[Any]:
        """Inputs and outputs of the graph: bytes as words, rows of the capacity."""
        ports = []
        for value in values:
            kind = value.type.tensor_type.elem_type
            sides = [d.dim_value for d in value.type.tensor_type.shape.dim]
            if kind == TensorProto.UINT8:
                kind, sides = TensorProto.INT32, [words(int(np.prod(sides)))]
            elif sides and sides[0] == 0:
                sides[0] = self.capacity
            ports.append(helper.make_tensor_value_info(value.name, kind, sides))
        return ports


def pack_with_library() -> Pack:
    """``csg_pack_weight`` of the CUDA library (host code; needs no GPU). Raises EnvironmentMismatch without it."""
    from crispseg.plugins import cuda_loader

    library = cuda_loader.load()

    def pack(kind: int, weight: np.ndarray) -> bytes:
        weight = np.ascontiguousarray(weight, np.float32)
        room = np.zeros(library.csg_packed_bytes(kind, *weight.shape), np.uint8)
        scales = np.zeros(weight.shape[2], np.float32)  # by the rule of plugins/quantise.py
        status = library.csg_pack_weight(kind, weight.ctypes.data, *weight.shape, room.ctypes.data, scales.ctypes.data)
        if status != 0:
            reason = (library.csg_last_error() or b"").decode("utf-8", "replace")
            raise UnsupportedOp("weights %s: the kernels cannot pack them: %s" % (weight.shape, reason))
        return room.tobytes()

    return pack


def _raw(node: NodeProto) -> RawNode:
    """A node by the roles of its tensors."""
    title = _title(node)
    if node.domain != DOMAIN:
        return RawNode(title, "Concat", {str(i): n for i, n in enumerate(node.input)}, {"y": node.output[0]}, {})
    where = "node %r" % title
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    attributes = check_attributes(node.op_type, given, where)
    return RawNode(title, node.op_type, *check_connections(node.op_type, node.input, node.output, attributes, where),
                   attributes)  # fmt: skip


def _up_maps(model: ModelProto) -> set:
    """Maps that a convolution reads."""
    return {n.input[1] for n in model.graph.node if n.op_type == "SparseConv2d" and n.domain == DOMAIN and n.input[1]}


def _bits(names: Sequence[str]) -> int:
    return sum(1 << i for i, name in enumerate(names) if name)


def _title(node: NodeProto) -> str:
    return node.name or next((name for name in node.output if name), node.op_type)
