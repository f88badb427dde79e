"""Fold what a fixed-size graph knows beforehand, and give its nodes and weights names a person can read."""

from __future__ import annotations

import hashlib
from typing import Dict, List, Sequence, Set, Tuple

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_SMALL = 4096  # bytes; what shapes are computed from is far smaller
_FOLD_LIMIT = 64 << 20  # bytes of a folded constant; nothing in a base comes near


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace every node whose value is known at this size by an initialiser, in place.

    Known are: constants, shapes of tensors with a static shape, and whatever is computed from those alone.
    """
    graph = model.graph
    inferred = infer_light(model, data_prop=True)
    shapes: Dict[str, Sequence[int]] = {}
    types: Dict[str, int] = {}
    for info in list(inferred.graph.value_info) + list(graph.input) + list(graph.output):
        types[info.name] = info.type.tensor_type.elem_type
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[info.name] = [d.dim_value for d in dims]
    known: Dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for tensor in graph.initializer:
        shapes[tensor.name] = list(tensor.dims)
    outputs = {o.name for o in graph.output}
    made: Dict[str, np.ndarray] = {}
    kept: List[onnx.NodeProto] = []
    for node in graph.node:
        value = None
        if node.op_type == "Identity" and node.output[0] not in outputs:
            value = known.get(node.input[0])
        elif node.op_type == "Shape" and node.input[0] in shapes:
            bounds = {a.name: a.i for a in node.attribute}  # a range of the dimensions, since opset 15
            value = np.asarray(shapes[node.input[0]][bounds.get("start", 0) : bounds.get("end")], np.int64)
        elif len(node.output) == 1 and node.output[0] not in outputs and _is_known(node, known):
            value = _evaluate(node, known, model)
        if value is None or value.nbytes > _FOLD_LIMIT:
            kept.append(node)
        else:
            known[node.output[0]] = made[node.output[0]] = np.asarray(value, order="C")
    del graph.node[:]
    graph.node.extend(kept)
    for name, value in made.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    _skip_identities(graph, types, outputs)


def infer_light(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """Shape inference on a copy without large weights, which it would only carry to and fro.

    Args:
        model: not changed.
        options: of ``onnx.shape_inference.infer_shapes``.

    Returns:
        A model with ``value_info`` filled in; large initialisers are inputs there.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    graph, source = light.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    given = {i.name for i in source.input}
    for tensor in source.initializer:
        if tensor.ByteSize() <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.shape_inference.infer_shapes(light, **options)


def _is_known(node: onnx.NodeProto, known: Dict[str, np.ndarray]) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type.startswith("Random"):
        return False
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        return False
    return all(name in known for name in node.input if name)


def _evaluate(node: onnx.NodeProto, known: Dict[str, np.ndarray], model: onnx.ModelProto) -> np.ndarray:
    names = [n for n in dict.fromkeys(node.input) if n]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(known[n].dtype), known[n].shape) for n in names
    ]
    output = helper.make_empty_tensor_value_info(node.output[0])
    graph = helper.make_graph([node], "fold", inputs, [output])
    single = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    (value,) = ReferenceEvaluator(single).run(None, {n: known[n] for n in names})
    return np.asarray(value)


def _skip_identities(graph: onnx.GraphProto, types: Dict[str, int], outputs: Set[str]) -> None:
    alias: Dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [alias.get(n, n) for n in node.input]
        idle = (
            node.op_type == "Identity"
            or (node.op_type == "Dropout" and len(node.input) < 3)  # a third input may switch training on
            or (node.op_type == "Cast" and types.get(node.input[0]) == helper.get_node_attr_value(node, "to"))
        )
        if idle and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initialisers that no output depends on, in place."""
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(n for n in node.input if n)
            kept.append(node)
    kept.reverse()
    initializers = [t for t in graph.initializer if t.name in needed]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def merge_equal(graph: onnx.GraphProto, least: int = 1024) -> None:
    """Keep one of several initialisers of ``least`` bytes or more with equal type, shape and content, in place."""
    first: Dict[Tuple[int, Tuple[int, ...], bytes], str] = {}
    alias: Dict[str, str] = {}
    for tensor in graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        if len(raw) >= least:
            key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(raw).digest())
            alias[tensor.name] = first.setdefault(key, tensor.name)
    for node in graph.node:
        node.input[:] = [alias.get(n, n) for n in node.input]


def rename_readably(graph: onnx.GraphProto, drop: Sequence[str] = ()) -> None:
    """Name nodes ``module.path/Op``, their outputs alike, weights ``module.path.weight``, in place.

    Graph inputs and outputs keep their names. Initialisers are put in the order of their first use, so that neither
    names nor order depend on the exporter's counters.
    """
    fixed = {i.name for i in graph.input} | {o.name for o in graph.output}
    taken = set(fixed)

    def unique(name: str) -> str:
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name}_{number}", number + 1
        taken.add(candidate)
        return candidate

    initializers = {t.name: t for t in graph.initializer}
    renamed: Dict[str, str] = {}
    order: List[onnx.TensorProto] = []
    for node in graph.node:
        path = _module_path(node.name, drop)
        node.name = unique(f"{path}/{node.op_type}" if path else node.op_type)
        for index, name in enumerate(node.input):
            if name in initializers and name not in renamed and name not in fixed:
                renamed[name] = unique(_weight_name(node, path, index))
                order.append(initializers[name])
        for index, name in enumerate(node.output):
            if name and name not in fixed:
                renamed[name] = node.name if index == 0 else f"{node.name}:{index}"
        node.input[:] = [renamed.get(n, n) for n in node.input]
        node.output[:] = [renamed.get(n, n) for n in node.output]
    for tensor in order:
        tensor.name = renamed[tensor.name]
        tensor.doc_string = ""
    ordered = [_raw(t) for t in order]
    del graph.initializer[:]
    graph.initializer.extend(ordered)


def _weight_name(node: onnx.NodeProto, path: str, index: int) -> str:
    role = {1: "weight", 2: "bias"}.get(index) if node.op_type in ("Conv", "ConvTranspose", "Gemm") else None
    if role and path:
        return f"{path}.{role}"
    return f"{node.name}.constant{index}"


def _module_path(name: str, drop: Sequence[str]) -> str:
    # The exporter writes "/layer1/layer1.0/conv1/Conv": containers repeat their children's prefix.
    parts = [p for p in name.split("/") if p][:-1]
    while parts and parts[0] in drop:
        parts = parts[1:]
    kept = [p for i, p in enumerate(parts) if i + 1 == len(parts) or not parts[i + 1].startswith(p + ".")]
    return ".".join(kept)


def _raw(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
