"""Calibration of the sparse refiner: activation ranges from real frames -> refiner.int8.onnx.

The result is the same graph: every chosen SparseConv2d gets the attribute ``x_scale`` and an int8 weight with a scale
for each output channel (op contract, docs/bundle.md). Everything else, and what stays float, is left as it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from crispseg.bundle_calibration import METADATA
from crispseg.calibration.histogram import LEVELS, PERCENTILE, Histogram
from crispseg.calibration.refiner_graph import Conv, choose, constants, convolutions
from crispseg.errors import InputError
from crispseg.export.bodies import attach_bodies
from crispseg.export.compare import Made, expose
from crispseg.export.passes.graph import Graph, connect, is_op
from crispseg.export.passes.remove_dead import remove_dead
from crispseg.plugins.quantise import quantise_weight

FILE = "refiner.int8.onnx"
# Tensors that an engine keeps at once while ranges are collected; more of them take another pass over the frames.
MAX_OBSERVED_BYTES = 768 << 20

# One frame of the calibration set: image uint8 [H,W,3] RGB at the bundle's size, logits float32 [1,C,h,w].
Frame = tuple[np.ndarray, np.ndarray]
# ONNX model -> an engine with run({"image", "logits"}, output names) -> {name: array} and close().
OpenEngine = Callable[[ModelProto], Any]


@dataclass
class Ranges:
    """What a calibration set showed.

    ``histograms``: by the input tensor of a convolution; ``macs``: multiply-accumulates of each convolution over all
    frames (neighbours that exist); ``other_macs``: those of the ensembler; ``frames``: how many were seen; ``rows``:
    active pixels of all of them.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    other_macs: int = 0
    frames: int = 0
    rows: int = 0


def collect_ranges(
    model: ModelProto,
    frames: Callable[[], Iterable[Frame]],
    open_engine: OpenEngine,
    progress: Callable[[int, int], None] | None = None,
    total: int = 0,
) -> Ranges:
    """Run the refiner on frames and look at what its convolutions read.

    Args:
        model: the float refiner, as exported.
        frames: gives the calibration set from its start, the same every time; called once for each pass.
        open_engine: engine of a model; the model has the observed tensors as outputs.
        progress: called with (frames done, of) over all passes.
        total: frames of a pass, for ``progress``.

    Returns:
        Ranges; memory does not grow with the number of frames.

    Raises:
        InputError: no frame, no active pixel in any, or activations that are not finite.
    """
    convs = convolutions(model)
    passes = _passes(model, convs)
    ranges = Ranges()
    for number, names in enumerate(passes):
        maps = sorted({conv.map for conv in convs if conv.map}) if number == 0 else []
        counts = sorted({conv.count for conv in convs} | {"count"}) if number == 0 else ["count"]
        wanted = [Made(name, "", "", dtype) for dtype, group in
                  (("float32", names), ("int32", [*maps, *counts])) for name in group]  # fmt: skip
        engine = open_engine(expose(model, wanted))
        try:
            for done, (image, logits) in enumerate(frames()):
                if progress:
                    progress(number * total + done, len(passes) * total)
                found = engine.run({"image": image, "logits": logits}, [made.tensor for made in wanted])
                for name in names:
                    ranges.histograms.setdefault(name, Histogram()).add(found[name])
                if number == 0:
                    ranges.frames += 1
                    ranges.rows += int(found["count"][0])
                    _count_macs(ranges, model, convs, found)
        finally:
            engine.close()
    if progress:
        progress(len(passes) * total, len(passes) * total)
    if not ranges.frames or not ranges.rows:
        raise InputError(
            f"calibration of the refiner: expected frames with active pixels, found {ranges.frames} frames with "
            f"{ranges.rows}; use images like those that will be segmented"
        )
    return ranges


def _passes(model: ModelProto, convs: Sequence[Conv]) -> list[list[str]]:
    """Input tensors of the convolutions in groups that fit MAX_OBSERVED_BYTES at the capacity of the graph."""
    columns = {conv.x: conv.shape[1] for conv in convs}
    rows = _most_rows(model)
    groups: list[list[str]] = [[]]
    size = 0
    for conv in convs:
        if conv.x not in columns:
            continue
        nbytes = 4 * columns.pop(conv.x) * rows[conv.count]
        if groups[-1] and size + nbytes > MAX_OBSERVED_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(conv.x)
        size += nbytes
    return groups


def _most_rows(model: ModelProto) -> dict[str, int]:
    """Rows that each count may stand for: the capacity, and below it what the coarser grids hold."""
    rows: dict[str, int] = {}
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if is_op(node, "SelectPixels"):
            rows[node.output[2]] = min(attributes["capacity"], attributes["height"] * attributes["width"])
        elif is_op(node, "DownMap"):
            sites = max(1, ((attributes["height"] - 1) // 2) * ((attributes["width"] - 1) // 2))
            rows[node.output[1]] = min(4 * rows[node.input[1]], sites)
    return rows


def _count_macs(ranges: Ranges, model: ModelProto, convs: Sequence[Conv], found: Mapping[str, np.ndarray]) -> None:
    pairs = {name: int(np.count_nonzero(found[name] >= 0)) for name in {conv.map for conv in convs if conv.map}}
    for conv in convs:
        products = pairs[conv.map] if conv.map else int(found[conv.count][0])
        ranges.macs[conv.name] = ranges.macs.get(conv.name, 0) + products * conv.shape[1] * conv.shape[2]
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer if len(tensor.dims) == 2}
    for node in model.graph.node:
        if is_op(node, "EnsembleLogits"):
            per_row = sum(sizes.get(name, 0) for name in node.input[3:])
            ranges.other_macs += per_row * int(found[node.input[2]][0])


# ---- from ranges to a graph -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantised:
    """An int8 refiner.

    ``scales``: x_scale of each int8 convolution by node name; ``share``: of the multiply-accumulates on the calibration
    set that are int8, 0..1; ``kept``: convolutions that stay float.
    """

    model: ModelProto
    scales: dict[str, float]
    share: float
    kept: tuple[str, ...]


def quantise_refiner(
    model: ModelProto,
    ranges: Ranges,
    method: str = "mse",
    *,
    percentile: float = PERCENTILE,
    exclude: Iterable[str] = (),
    edges: bool = False,
) -> Quantised:
    """The int8 form of a refiner; the model given is left alone.

    Args:
        model: float, as exported (weights stored as float32 or float16).
        ranges: from :func:`collect_ranges` on the same model.
        method: "minmax", "percentile", "mse" or "entropy".
        percentile: for that method.
        exclude: convolutions to leave in float (names, or patterns of them).
        edges: also the first and the last convolution, which stay float otherwise.

    Raises:
        InputError: an unknown method, an exclusion that matches nothing, or nothing left to quantise.
    """
    convs = convolutions(model)
    chosen = choose(convs, exclude, edges)
    scales = {}
    for group in sorted({conv.scale_group for conv in chosen}):
        members = [conv for conv in chosen if conv.scale_group == group]
        tensors = sorted({conv.x for conv in members})
        most = max(ranges.histograms[name].threshold(method, percentile) for name in tensors)
        if most > 0.0:  # an input that is zero throughout has no scale
            scales.update({conv.name: float(np.float32(most / LEVELS)) for conv in members})
    if not scales:
        raise InputError("calibration of the refiner: every convolution is excluded; leave some of them to int8")
    made = ModelProto.FromString(model.SerializeToString())
    _write(made, [conv for conv in chosen if conv.name in scales], scales)
    work = sum(ranges.macs.values()) + ranges.other_macs
    share = sum(ranges.macs[name] for name in scales) / work if work else 0.0
    return Quantised(made, scales, share, tuple(conv.name for conv in convs if conv.name not in scales))


def _write(model: ModelProto, chosen: Sequence[Conv], scales: Mapping[str, float]) -> None:
    graph = Graph(model)
    values = constants(model)
    nodes = {node.name: node for node in graph.nodes if is_op(node, "SparseConv2d")}
    made: dict[str, Any] = {}
    for conv in chosen:
        if conv.weight not in made:
            q, scale = quantise_weight(values[conv.weight])
            stem = conv.weight[: -len(".full")] if conv.weight.endswith(".full") else conv.weight
            names = [f"{stem}.{part}" for part in ("int8", "scale", "dequantised")]
            taken = graph.taken.intersection(names)
            if taken:
                raise InputError(f"refiner: tensor {sorted(taken)[0]!r} is there already; calibrate the float refiner")
            model.graph.initializer.extend(
                [numpy_helper.from_array(q, names[0]), numpy_helper.from_array(scale, names[1])]
            )
            made[conv.weight] = helper.make_node("DequantizeLinear", names[:2], [names[2]], names[2], axis=2)
        node = nodes[conv.name]
        connect(node, "weight", made[conv.weight].output[0])
        node.attribute.append(helper.make_attribute("x_scale", float(scales[conv.name])))
    graph.replace_nodes([*made.values(), *graph.nodes])
    remove_dead(model)  # the float weights and their Casts
    attach_bodies(model)


def save_model(model: ModelProto, facts: Mapping[str, Any] | None = None) -> bytes:
    """Bytes of a model: the same model and facts give the same bytes.

    ``facts``: provenance, plain JSON, written into the file's metadata.
    """
    if facts is not None:
        model = ModelProto.FromString(model.SerializeToString())
        model.metadata_props.add(key=METADATA, value=json.dumps(dict(facts), sort_keys=True))
    return bytes(model.SerializeToString(deterministic=True))


def load_model(path: Path) -> ModelProto:
    """A refiner from its file. Raises InputError."""
    import onnx

    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise InputError(f"{path}: expected a refiner in ONNX, found: {error}") from None
