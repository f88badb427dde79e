"""Remove what no output of the graph depends on.

Before: any graph in topological order.
After: every node has an output that is read or is a graph output; a SparseConv2d writes only outputs that are read;
every initialiser is read.
"""

from __future__ import annotations

from onnx import ModelProto

from crispseg.export.passes.graph import Graph, connect, is_op, output_of


def remove_dead(model: ModelProto) -> int:
    """Remove in place; returns how many nodes went."""
    graph = Graph(model)
    live = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if not any(name in live for name in node.output if name):
            continue
        if is_op(node, "SparseConv2d"):
            for i, name in enumerate(node.output):
                if name and name not in live:
                    node.output[i] = ""
                    if i:
                        connect(node, f"scale{i}", "")
                        connect(node, f"shift{i}", "")
            while not output_of(node, len(node.output) - 1):
                node.output.pop()
            while not node.input[-1]:
                node.input.pop()
        live.update(name for name in node.input if name)
        kept.append(node)
    removed = len(graph.nodes) - len(kept)
    graph.replace_nodes(kept[::-1])
    used = [tensor for tensor in model.graph.initializer if tensor.name in live]
    if len(used) != len(model.graph.initializer):
        copies = [type(t).FromString(t.SerializeToString()) for t in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
    return removed
