"""Move ReLU, residual addition and pre-activation BatchNorm into the convolutions' epilogues.

Before: SparseConv2d, Concat (axis 1), Relu, Add and inference BatchNormalization on rows.
After: of these only SparseConv2d and Concat are left (UnsupportedOp names the first node that could not be moved).

- Relu(conv) becomes relu=1.
- Add(conv, r) becomes residual=r, on the later of two convolutions, so that r is computed already.
- Relu(BatchNormalization(y)) becomes the output z1 or z2 of the convolution that makes y.
- Relu(BatchNormalization(Concat(a, b))) first becomes Concat(Relu(BN_a(a)), Relu(BN_b(b))) with sliced parameters.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from crispseg.errors import UnsupportedOp
from crispseg.export.passes.graph import Graph, affine, connect, flag, is_op, output_of, role_of, set_flag

_MOVED = ("Relu", "Add", "BatchNormalization")


def fuse_epilogue(model: ModelProto) -> int:
    """Fuse in place; returns how many nodes fewer the graph has.

    Raises:
        UnsupportedOp: a Relu, Add or BatchNormalization is left that no epilogue can hold.
    """
    before = len(model.graph.node)
    for rewrite in (_fuse_relu, _fuse_residual, _split_concat, _fuse_norm):
        while rewrite(model):
            pass
    for node in model.graph.node:
        if not node.domain and node.op_type in _MOVED:
            raise UnsupportedOp(
                f"node {node.name or node.output[0]!r}: {node.op_type} fits no convolution's epilogue; "
                f"export with optimise=False to look at the graph"
            )
    return before - len(model.graph.node)


def _drop(graph: Graph, gone: list[NodeProto], insert: dict[int, list[NodeProto]] | None = None) -> bool:
    drop, nodes = {id(node) for node in gone}, []
    for node in graph.nodes:
        nodes += (insert or {}).get(id(node), [])
        if id(node) not in drop:
            nodes.append(node)
    graph.replace_nodes(nodes)
    return True


def _bare(conv: NodeProto) -> bool:
    return not (flag(conv, "relu") or output_of(conv, 1) or output_of(conv, 2))


def _fuse_relu(model: ModelProto) -> bool:
    graph = Graph(model)
    gone = []
    for relu in graph.nodes:
        conv = graph.convolution(relu.input[0]) if relu.op_type == "Relu" and not relu.domain else None
        if conv is not None and _bare(conv) and graph.only_reader(relu.input[0]) is not None:
            set_flag(conv, "relu", 1)
            conv.output[0] = relu.output[0]
            gone.append(relu)
    return bool(gone) and _drop(graph, gone)


def _fuse_residual(model: ModelProto) -> bool:
    graph = Graph(model)
    for add in graph.nodes:
        if add.op_type != "Add" or add.domain:
            continue
        found = []
        for i in (0, 1):
            conv = graph.convolution(add.input[i])
            if conv is None or not _bare(conv) or graph.only_reader(add.input[i]) is not add:
                continue
            if not role_of(conv, "residual"):
                found.append((graph.position[id(conv)], i, conv))
        for position, i, conv in sorted(found, key=lambda item: -item[0]):
            other = add.input[1 - i]
            maker = graph.producer.get(other)
            # Only a tensor of rows with the same shape can be a residual; an initialiser would broadcast.
            if maker is None or graph.position[id(maker)] > position:
                continue
            connect(conv, "residual", other)
            conv.output[0] = add.output[0]
            return _drop(graph, [add])
    return False


def _norm_relu(graph: Graph) -> list[tuple[NodeProto, NodeProto, np.ndarray, np.ndarray]]:
    """Pairs (BatchNormalization, Relu) with the norm's scale and shift."""
    pairs = []
    for norm in graph.nodes:
        terms = affine(graph, norm)
        relu = graph.only_reader(norm.output[0])
        if terms is not None and relu is not None and relu.op_type == "Relu" and not relu.domain:
            pairs.append((norm, relu, *terms))
    return pairs


def _split_concat(model: ModelProto) -> bool:
    graph = Graph(model)
    for norm, relu, scale, shift in _norm_relu(graph):
        concat = graph.producer.get(norm.input[0])
        if concat is None or concat.op_type != "Concat" or concat.domain or flag(concat, "axis") != 1:
            continue
        widths = _widths(graph, concat)
        if sum(widths) != len(scale):
            continue
        new, parts, start = [], [], 0
        for i, (name, width) in enumerate(zip(concat.input, widths)):
            part = f"{relu.output[0]}.{i}"
            stop = start + width
            # Scale and shift as a norm of mean 0 and variance 1, exactly: epsilon is 0.
            terms = (scale[start:stop], shift[start:stop], np.zeros(width), np.ones(width))
            roles = ("scale", "shift", "mean", "variance")
            inputs = [graph.add_initializer(f"{part}.{role}", value) for role, value in zip(roles, terms)]
            new += [
                helper.make_node("BatchNormalization", [name, *inputs], [part + ".norm"], part + ".norm", epsilon=0.0),
                helper.make_node("Relu", [part + ".norm"], [part], part),
            ]
            parts.append(part)
            start = stop
        new.append(helper.make_node("Concat", parts, [relu.output[0]], relu.name, axis=1))
        return _drop(graph, [norm, relu], {id(relu): new})
    return False


def _widths(graph: Graph, concat: NodeProto) -> list[int]:
    """Columns of a Concat's inputs, as far as convolutions and Concats tell; empty when one is unknown."""
    widths = []
    for name in concat.input:
        maker, width = graph.producer.get(name), 0
        if maker is not None and is_op(maker, "SparseConv2d"):
            weight = graph.initializers.get(role_of(maker, "weight"))
            width = 0 if weight is None else int(weight.dims[2])
        elif maker is not None and maker.op_type == "Concat" and not maker.domain:
            width = sum(_widths(graph, maker))
        if not width:
            return []
        widths.append(width)
    return widths


def _fuse_norm(model: ModelProto) -> bool:
    graph = Graph(model)
    gone = []
    for norm, relu, scale, shift in _norm_relu(graph):
        conv = graph.convolution(norm.input[0])
        if conv is None:
            continue
        slot = next((i for i in (1, 2) if not output_of(conv, i)), None)
        if slot is None:
            continue
        while len(conv.output) <= slot:
            conv.output.append("")
        conv.output[slot] = relu.output[0]
        connect(conv, f"scale{slot}", graph.add_initializer(relu.output[0] + ".scale", scale))
        connect(conv, f"shift{slot}", graph.add_initializer(relu.output[0] + ".shift", shift))
        gone += [norm, relu]
    return bool(gone) and _drop(graph, gone)
