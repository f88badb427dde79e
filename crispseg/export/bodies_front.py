"""Portable bodies of SelectPixels, LogitsAt and PixelFeatures: from logits and image to rows."""

from __future__ import annotations

from typing import Any, Mapping

from onnx import FunctionProto, TensorProto, helper

from crispseg.export.functions import Body
from crispseg.plugins.ops import BY_NAME, parse_features

_RESIZE = {"bilinear": "half_pixel", "bilinear_corners": "align_corners"}


def select_pixels(overload: str, attributes: Mapping[str, Any]) -> FunctionProto:
    """SelectPixels. With nearest, everything per pixel is computed at low resolution and repeated afterwards."""
    b = Body(BY_NAME["SelectPixels"])
    height, width = b.attribute("height"), b.attribute("width")
    logits = "logits"
    nearest = attributes["upsample"] == "nearest"
    if not nearest:
        shape = b("Shape", logits)
        channels = b("Slice", shape, b.const([0]), b.const([2]))
        sizes = b("Concat", channels, b.vector(height, width), axis=0)
        mode = _RESIZE[attributes["upsample"]]
        logits = b("Resize", logits, "", "", sizes, mode="linear", coordinate_transformation_mode=mode)
    p = b("Softmax", logits, axis=1)
    planes = {
        "entropy": b.entropy(p, axis=1, keepdims=0),
        "labels": b("ArgMax", logits, axis=1, keepdims=0),
        "confidence": b("Round", b("Mul", b("ReduceMax", p, axes=[1], keepdims=0), b.f32(255))),
    }
    for name in planes:
        if name != "entropy":
            planes[name] = b.cast(planes[name], "uint8")
        planes[name] = b("Squeeze", planes[name], b.const([0]))
    if nearest:
        rows = _nearest(b, b.range(height), b.dim("logits", 2), height)
        columns = _nearest(b, b.range(width), b.dim("logits", 3), width)
        planes = {k: b("Gather", b("Gather", v, rows, axis=0), columns, axis=1) for k, v in planes.items()}
    for name in ("labels", "confidence"):
        b("Identity", planes[name], out=name)
    mask = b("Greater", planes["entropy"], b.attribute("threshold"))
    sites = b("Transpose", b("NonZero", mask), perm=[1, 0])
    b.rows(sites, out="found")
    if attributes["capacity"] < attributes["height"] * attributes["width"]:
        sites = _most_uncertain(b, planes["entropy"], sites)
    b.cast(sites, "int32", out="coords")
    b.rows(sites, out="count")
    return b.function(overload, ["labels", "coords", "count", "found", "confidence"])


def _nearest(b: Body, index: str, size: str, target: str) -> str:
    # floor(i * h / H) in integers: Resize computes it in float and misses exact multiples.
    return b("Div", b("Mul", index, size), target)


def _most_uncertain(b: Body, entropy: str, sites: str) -> str:
    """Over capacity: TopK by entropy (equal values: lower index first, as ONNX defines), then back to raster order."""
    capacity = b.attribute("capacity")
    limit = b("Reshape", capacity, b.const([1]))
    over = b("Greater", b.dim(sites, 0), capacity)
    then, inner = b.name(), Body(b.op)
    inner._count = 1000  # names of a subgraph share the scope of its parent
    active = inner("GatherND", entropy, sites)
    _, best = inner("TopK", active, limit, axis=0, largest=1, sorted=1, out=[inner.name(), inner.name()])
    ordered, _ = inner("TopK", best, limit, axis=0, largest=0, sorted=1, out=[inner.name(), inner.name()])
    inner("Gather", sites, ordered, axis=0, out=then)
    other = b.name()
    keep = helper.make_node("Identity", [sites], [other])
    branch = {
        "then_branch": helper.make_graph(inner.nodes, "over_capacity", [], [_int64_rows(then)]),
        "else_branch": helper.make_graph([keep], "within_capacity", [], [_int64_rows(other)]),
    }
    return b("If", over, **branch)


def _int64_rows(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.INT64, [None, 2])


def logits_at(overload: str, attributes: Mapping[str, Any]) -> FunctionProto:
    """LogitsAt: the channels-last table of low-resolution logits, gathered once (nearest) or four times."""
    b = Body(BY_NAME["LogitsAt"])
    y, x = b.columns("coords")
    channels, rows, columns = (b.dim("logits", axis) for axis in (1, 2, 3))
    table = b("Transpose", b("Reshape", "logits", b.vector(channels, b.const(-1))), perm=[1, 0])
    if attributes["upsample"] == "nearest":
        y, x = _nearest(b, y, rows, b.attribute("height")), _nearest(b, x, columns, b.attribute("width"))
        b("Gather", table, b("Add", b("Mul", y, columns), x), axis=0, out="yi")
        return b.function(overload, ["yi"])
    corners = attributes["upsample"] == "bilinear_corners"
    y0, y1, fy = _linear(b, y, rows, b.attribute("height"), corners)
    x0, x1, fx = _linear(b, x, columns, b.attribute("width"), corners)
    across = []
    for row in (y0, y1):
        start = b("Mul", row, columns)
        left, right = (b("Gather", table, b("Add", start, column), axis=0) for column in (x0, x1))
        across.append(b("Add", left, b("Mul", b("Sub", right, left), fx)))
    b("Add", across[0], b("Mul", b("Sub", across[1], across[0]), fy), out="yi")
    return b.function(overload, ["yi"])


def _linear(b: Body, index: str, size: str, target: str, corners: bool) -> tuple[str, str, str]:
    """Two source indices (int64 [N]) and the weight of the second (float32 [N,1]), computed in double."""
    one, last = b.const(1), b("Sub", size, b.const(1))
    position = b.cast(index, "float64")
    if corners:
        steps = b("Max", b("Sub", target, one), one)
        source = b("Div", b("Mul", position, b.cast(last, "float64")), b.cast(steps, "float64"))
    else:
        half = b.const(0.5, "float64")
        scale = b("Div", b.cast(size, "float64"), b.cast(target, "float64"))
        source = b("Sub", b("Mul", b("Add", position, half), scale), half)
    source = b("Max", b("Min", source, b.cast(last, "float64")), b.const(0.0, "float64"))
    floor = b("Floor", source)
    low = b.cast(floor, "int64")
    weight = b.cast(b("Sub", source, floor), "float32")
    return low, b("Min", b("Add", low, one), last), b("Unsqueeze", weight, b.const([1]))


def pixel_features(overload: str, attributes: Mapping[str, Any]) -> FunctionProto:
    """PixelFeatures: one block of columns a feature, joined in list order."""
    b = Body(BY_NAME["PixelFeatures"])
    blocks, p = [], ""
    for kind, threshold in parse_features(attributes["features"]):
        if kind == "rgb":
            colours = b.cast(b("GatherND", "image", b.cast("coords", "int64")), "float32")
            if attributes["channel_order"] == "bgr":
                colours = b("Gather", colours, b.const([2, 1, 0]), axis=1)
            blocks.append(b("Div", b("Sub", colours, b.attribute("mean")), b.attribute("std")))
        elif kind == "xy":
            size = b.cast(b.vector(b.attribute("height"), b.attribute("width")), "float32")
            blocks.append(b("Div", b.cast("coords", "float32"), size))
        else:
            p = p or b("Softmax", "yi", axis=1)
            blocks.append(p if threshold is None else b.cast(b("Greater", p, b.f32(threshold)), "float32"))
    b("Concat", *blocks, axis=1, out="x")
    return b.function(overload, ["x"])
