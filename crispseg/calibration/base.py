"""Int8 form of a dense network: float ONNX + ranges from real frames -> ONNX with explicit Q/DQ pairs.

Activations and weights are symmetric int8 (zero point 0), weights with a scale for each output channel, biases stay
float. One file serves TensorRT 8.5 to 11 and ONNX Runtime (docs/calibration.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from crispseg.bundle_calibration import METADATA
from crispseg.calibration.histogram import LEVELS, PERCENTILE, Histogram
from crispseg.calibration.placement import Placement, weight_axis
from crispseg.errors import BundleError
from crispseg.export.passes.fp16 import plain_weights
from crispseg.export.passes.graph import Graph

RANGES = "crispseg.ranges"  # metadata of the file: tensor -> range, for float results of int8 products
LEAST_SCALE = 2.0**-60  # of a tensor that was zero on every frame
LEAST_HALF = 2.0**-19  # below, float16 has fewer than five bits left
MOST_OBSERVED = 512 << 20  # bytes of activations that are held at once

Progress = Callable[[int, int], None]
Inputs = Sequence[np.ndarray] | Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Quantised:
    """An int8 network. ``thresholds``: range of every watched tensor, by name; ``placement``: what became int8."""

    model: ModelProto
    thresholds: dict[str, float]
    placement: Placement


def read_dense(path: Path) -> ModelProto:
    """A dense network with its weights as float32 initialisers and a name on every node.

    Raises:
        BundleError: no ONNX file, or one that is quantised already.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise BundleError(f"{path}: expected an ONNX network, found: {str(error)[:100]}") from None
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise BundleError(f"{path}: expected a float network, found QuantizeLinear nodes; calibrate the float bundle")
    plain_weights(model.graph)
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}" if f"{node.op_type}_{index}" not in taken else f"node.{index}"
    return model


def collect(
    model: ModelProto,
    watched: Sequence[str],
    inputs: Inputs,
    *,
    threads: int = 0,
    total: int = 0,
    progress: Progress | None = None,
) -> dict[str, Histogram]:
    """Histograms of tensors over all inputs; memory does not grow with their number.

    ONNX Runtime's own calibrators keep every activation of every image until the end, so they are not used.

    Args:
        model: from :func:`read_dense`.
        watched: names of tensors, the graph's input among them where it is wanted.
        inputs: network inputs, float32 [1,3,h,w], as the pipeline prepares them: a sequence, or a function that gives
            them from the start. A network with large activations takes several passes over them.
        threads: 0 = all usable CPUs.
        total: number of inputs, for ``progress``.
        progress: called with (done, total).

    Raises:
        InputError: an activation is not finite.
    """
    import onnxruntime

    from crispseg.environment import usable_cpus

    name = model.graph.input[0].name
    inner = [item for item in watched if item != name]
    parts = _parts(inner, _shapes(model))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or usable_cpus()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # both keep far more than they use
    found = {item: Histogram() for item in watched}
    for number, part in enumerate(parts):
        # A session of its own for each part: ONNX Runtime holds every output of a graph until the end of a run.
        session = onnxruntime.InferenceSession(
            _exposed(model, part), sess_options=options, providers=["CPUExecutionProvider"]
        )
        for done, value in enumerate(inputs() if callable(inputs) else inputs):
            if progress:
                progress(number * total + done, len(parts) * total)
            if name in found and number == 0:
                found[name].add(value)
            for item, result in zip(part, session.run(part, {name: value}), strict=True) if part else ():
                found[item].add(result)
        del session
    if progress:
        progress(len(parts) * total, len(parts) * total)
    return found


def _exposed(model: ModelProto, names: Sequence[str]) -> bytes:
    """The model with more outputs; ``model`` is as before afterwards, and never copied: weights may be large."""
    outputs = {value.name for value in model.graph.output}
    count = len(outputs)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in outputs
    )
    try:
        return bytes(model.SerializeToString())
    finally:
        del model.graph.output[count:]


def _parts(names: Sequence[str], shapes: Mapping[str, int]) -> list[list[str]]:
    """Tensors that are watched in one pass over the inputs: no more memory than allowed."""
    parts: list[list[str]] = [[]]
    held = 0
    for name in names:
        if parts[-1] and held + shapes[name] > MOST_OBSERVED:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += shapes[name]
    return parts


def _shapes(model: ModelProto) -> dict[str, int]:
    from crispseg.calibration.placement import shapes_of

    return {name: 4 * int(np.prod(shape)) for name, shape in shapes_of(model).items()}


def quantise(
    model: ModelProto,
    placement: Placement,
    histograms: Mapping[str, Histogram],
    method: str = "mse",
    *,
    percentile: float = PERCENTILE,
    facts: Mapping[str, Any] | None = None,
) -> Quantised:
    """Put the Q/DQ pairs in; the model given is left alone.

    Args:
        model: from :func:`read_dense`.
        placement: what becomes int8.
        histograms: from :func:`collect`, of ``placement.watched``.
        method: "minmax", "entropy", "percentile" or "mse".
        percentile: for that method.
        facts: provenance, plain JSON, written into the file's metadata. The same model, histograms and facts give the
            same bytes.
    """
    alone = {name: histograms[name].threshold(method, percentile) for name in placement.watched}
    thresholds = dict(alone)
    for name, root in placement.group.items():
        thresholds[name] = max(alone[item] for item, other in placement.group.items() if other == root)
    made = ModelProto.FromString(model.SerializeToString())
    _insert(made, placement, thresholds)
    ends = {name: thresholds[name] for name in placement.ends}
    for key, value in ((METADATA, dict(facts or {})), (RANGES, ends)):
        made.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True))
    onnx.checker.check_model(made)
    return Quantised(made, thresholds, placement)


def activations(model: ModelProto) -> list[str]:
    """Names of the float tensors between the nodes and of the inputs, in graph order."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    names = [value.name for value in model.graph.input]
    names += [name for node in model.graph.node for name in node.output]
    return [name for name in names if name in floats]


def to_bytes(model: ModelProto) -> bytes:
    """The same model gives the same bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def scale_of(threshold: float) -> np.float32:
    """Scale of an activation."""
    return np.float32(half_above(np.array([max(threshold / LEVELS, LEAST_SCALE)], np.float32))[0])


def half_above(scale: np.ndarray) -> np.ndarray:
    """The least float16 values not below these float32 ones, as float32; values beyond float16 stay as they are.

    A strongly typed TensorRT gets the scales as float16: so nothing changes there. At most a thousandth is lost.
    """
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
        half = np.where(half.astype(np.float32) < scale, np.nextafter(half, np.float16(np.inf)), half)
    return np.where((scale > LEAST_HALF) & np.isfinite(half), half.astype(np.float32), scale)


def quantise_weight(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(int8 of the weight's shape, float32 scale of each channel). A channel of zeros has scale 1."""
    other = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=other)
    scale = half_above(np.where(largest > 0, largest / np.float32(LEVELS), np.float32(1)).astype(np.float32))
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    q = np.clip(np.rint(weight / scale.reshape(shape)), -LEVELS, LEVELS)
    return q.astype(np.int8), scale


def _insert(model: ModelProto, placement: Placement, thresholds: Mapping[str, float]) -> None:
    graph = Graph(model)
    tensors: list[Any] = [numpy_helper.from_array(np.int8(0).reshape(()), "int8.zero")]
    for root in sorted(set(placement.group.values())):
        tensors.append(numpy_helper.from_array(scale_of(thresholds[root]).reshape(()), root + ".scale"))
    pairs: dict[str, list[NodeProto]] = {}
    for name in placement.tensors:
        ends = [name + ".int8", name + ".dequantised"]
        scale = [placement.group[name] + ".scale", "int8.zero"]
        pairs[name] = [
            helper.make_node("QuantizeLinear", [name, *scale], ends[:1], name + ".quantise"),
            helper.make_node("DequantizeLinear", [ends[0], *scale], ends[1:], name + ".dequantise"),
        ]
    nodes: list[NodeProto] = [node for value in model.graph.input for node in pairs.get(value.name, ())]
    chosen = set(placement.nodes)
    weights: dict[tuple[str, int], str] = {}
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            if name in pairs:
                node.input[i] = pairs[name][1].output[0]
        if node.name in chosen:
            weight, axis = node.input[1], weight_axis(node)
            if (weight, axis) not in weights:
                value = graph.array(weight)
                assert value is not None
                q, scale_value = quantise_weight(value, axis)
                stem = weight if weight not in {item for item, _ in weights} else f"{weight}.axis{axis}"
                parts = (q, scale_value, np.zeros(scale_value.shape, np.int8))
                names = [f"{stem}.int8", f"{stem}.scale", f"{stem}.zero"]
                tensors += [numpy_helper.from_array(part, item) for part, item in zip(parts, names, strict=True)]
                ends = [f"{stem}.dequantised"]
                nodes.append(helper.make_node("DequantizeLinear", names, ends, f"{stem}.dequantise", axis=axis))
                weights[(weight, axis)] = ends[0]
            node.input[1] = weights[(weight, axis)]
        nodes.append(node)
        for name in node.output:
            nodes.extend(pairs.get(name, ()))
    graph.replace_nodes(nodes)
    used = {name for node in model.graph.node for name in node.input}
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *tensors])
    del model.graph.value_info[:]
