"""The op contract of domain ``crispseg``, version 1, as data.

One record an op: the exporter writes nodes from it, the native engine validates nodes with it, and the tests walk
it. Numpy free, onnx free, Python 3.8.

Words: rows are active sites in raster order (y, then x). N = active sites of a level, M = sites of the output
level, K = kernel taps (9 or 1), tap ``k = ky + 3*kx``, C = classes, F = feature columns, H x W = the frame (or the
grid of a level for the two map ops), h x w = the low-resolution logits. ``count`` (int32 [1]) says how many rows
are real; outside TensorRT that is exactly N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from crispseg.errors import UnsupportedOp

DOMAIN = "crispseg"
CONTRACT_VERSION = 1
OPSET = 17
IR_VERSION = 10

# NVIDIA's parser looks for these two on every plugin node; the values are fixed by the contract.
PLUGIN_ATTRIBUTES = {"plugin_version": str(CONTRACT_VERSION), "plugin_namespace": ""}

UPSAMPLES = ("nearest", "bilinear", "bilinear_corners")
EXTENTS = ("active", "image")
CHANNEL_ORDERS = ("rgb", "bgr")
ENSEMBLE_MODES = ("gated", "entropy")
ENTROPY_FLOOR = 1e-5


@dataclass(frozen=True)
class Tensor:
    """One input or output: dtype by its numpy name, symbolic shape (rank = its length), optional = may be ""."""

    name: str
    dtype: str
    shape: tuple[Any, ...]
    optional: bool = False

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


@dataclass(frozen=True)
class Attribute:
    """One attribute: kind is "int", "float", "floats" or "string"; default None means it must be present."""

    name: str
    kind: str
    default: Any = None
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    length: int | None = None


@dataclass(frozen=True)
class Op:
    """One record of the contract."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    shape_rule: str
    meaning: str

    def attribute(self, name: str) -> Attribute:
        """The record of one attribute (KeyError when the op has none of that name)."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(name)


_LOGITS = Tensor("logits", "float32", (1, "C", "h", "w"))
_COORDS = Tensor("coords", "int32", ("N", 2))
_COUNT = Tensor("count", "int32", (1,))
_SIZE = (Attribute("height", "int", minimum=0), Attribute("width", "int", minimum=0))
_UPSAMPLE = Attribute("upsample", "string", "nearest", choices=UPSAMPLES)

OPS: tuple[Op, ...] = (
    Op(
        "SelectPixels",
        (_LOGITS,),
        (
            Tensor("labels", "uint8", ("H", "W")),
            _COORDS,
            _COUNT,
            Tensor("found", "int32", (1,)),
            Tensor("confidence", "uint8", ("H", "W")),
        ),
        _SIZE + (_UPSAMPLE, Attribute("threshold", "float"), Attribute("capacity", "int", minimum=1)),
        "N = min(found, capacity); found = pixels with entropy > threshold",
        "Upsample, softmax, entropy E = -sum p ln(max(p, 1e-5)), argmax (lowest class wins ties) and E > threshold in "
        "one pass. Over capacity the most uncertain pixels stay (ties: first in raster order), rows still in raster "
        "order. confidence = round(255 * max p). nearest: source row = floor(i*h/H).",
    ),
    Op(
        "PixelFeatures",
        (
            Tensor("image", "uint8", ("H", "W", 3)),
            _COORDS,
            _COUNT,
            Tensor("yi", "float32", ("N", "C"), optional=True),
        ),
        (Tensor("x", "float32", ("N", "F")),),
        (
            Attribute("features", "string", "rgb"),
            Attribute("channel_order", "string", "rgb", choices=CHANNEL_ORDERS),
            Attribute("mean", "floats", length=3),
            Attribute("std", "floats", length=3),
        )
        + _SIZE,
        "F = sum of the feature widths: rgb 3, xy 2, p and p>v C",
        "Feature columns at the sites, in list order. rgb: (colour - mean[c]) / std[c], with order bgr column c is "
        "image channel 2-c; xy: (y/H, x/W); p: softmax(yi); p>v: softmax(yi) > v as 0/1.",
    ),
    Op(
        "LogitsAt",
        (_LOGITS, _COORDS, _COUNT),
        (Tensor("yi", "float32", ("N", "C")),),
        _SIZE + (_UPSAMPLE,),
        "one row a site",
        "Upsampled logits at the sites, by the rule of SelectPixels.",
    ),
    Op(
        "SubmanifoldMap",
        (_COORDS, _COUNT),
        (Tensor("map", "int32", ("N", 9)),),
        _SIZE,
        "one row a site",
        "Row of the neighbour (y+ky-1, x+kx-1), or -1. height, width = grid of this level.",
    ),
    Op(
        "DownMap",
        (_COORDS, _COUNT),
        (
            Tensor("coords_out", "int32", ("M", 2)),
            Tensor("count_out", "int32", (1,)),
            Tensor("down", "int32", ("M", 9)),
            Tensor("up", "int32", ("N", 9)),
        ),
        _SIZE + (Attribute("extent", "string", "active", choices=EXTENTS),),
        "M <= min(4N, ((H-1)//2) * ((W-1)//2)); the coarser grid is ((H-1)//2, (W-1)//2)",
        "Stride-2 sites: o exists when an input lies in {2o..2o+2}^2 and 0 <= o <= floor((S-2)/2) on both axes, "
        "S = largest coordinate of a site (active) or size-1 (image). down: input row at 2o+k; up: row o, 2o+k = site.",
    ),
    Op(
        "SparseConv2d",
        (
            Tensor("x", "float32", ("Nin", "Cin")),
            Tensor("map", "int32", ("M", "K"), optional=True),
            _COUNT,
            Tensor("weight", "float32", ("K", "Cin", "Cout")),
            Tensor("bias", "float32", ("Cout",), optional=True),
            Tensor("residual", "float32", ("M", "Cout"), optional=True),
            Tensor("scale1", "float32", ("Cout",), optional=True),
            Tensor("shift1", "float32", ("Cout",), optional=True),
            Tensor("scale2", "float32", ("Cout",), optional=True),
            Tensor("shift2", "float32", ("Cout",), optional=True),
        ),
        (
            Tensor("y", "float32", ("M", "Cout"), optional=True),
            Tensor("z1", "float32", ("M", "Cout"), optional=True),
            Tensor("z2", "float32", ("M", "Cout"), optional=True),
        ),
        (Attribute("relu", "int", 0, choices=(0, 1)), Attribute("x_scale", "float", 0.0, minimum=0)),
        "M = rows of map; without a map M = Nin and K = 1",
        "y[m] = sum_k x[map[m,k]] @ weight[k] (-1 adds nothing) + bias + residual, then relu when asked; "
        "z_i = relu(y * scale_i + shift_i). count is that of the output rows. x_scale > 0: the sum is one of integers, "
        "of q = clamp(round_half_even(x / x_scale), -127, 127) and the int8 weight whose DequantizeLinear (axis 2, "
        "symmetric) makes the input weight, times x_scale * weight scale [Cout]; the rest stays float32.",
    ),
    Op(
        "EnsembleLogits",
        (
            Tensor("yi", "float32", ("N", "C")),
            Tensor("yo", "float32", ("N", "C")),
            _COUNT,
            Tensor("w1", "float32", ("D", "2C+2"), optional=True),
            Tensor("b1", "float32", ("D",), optional=True),
            Tensor("w2", "float32", (2, "D"), optional=True),
            Tensor("b2", "float32", (2,), optional=True),
            Tensor("w3", "float32", ("D", "C"), optional=True),
            Tensor("b3", "float32", ("D",), optional=True),
            Tensor("w4", "float32", ("C", "D"), optional=True),
            Tensor("b4", "float32", ("C",), optional=True),
        ),
        (Tensor("ye", "float32", ("N", "C")),),
        (Attribute("mode", "string", "gated", choices=ENSEMBLE_MODES),),
        "one row a site; gated needs all eight weights, entropy none",
        "gated: g = softmax(W2 relu(W1 [softmax yi, E yi, softmax yo, E yo] + b1) + b2), m = g0 yi + g1 yo, "
        "ye = W4 relu(W3 m + b3) + b4. entropy: yi where E(yi) < E(yo), else yo.",
    ),
    Op(
        "ScatterLabels",
        (
            Tensor("labels", "uint8", ("H", "W")),
            Tensor("confidence", "uint8", ("H", "W")),
            _COORDS,
            _COUNT,
            Tensor("ye", "float32", ("N", "C")),
        ),
        (Tensor("labels_out", "uint8", ("H", "W")), Tensor("confidence_out", "uint8", ("H", "W"))),
        (),
        "the shape of labels",
        "Argmax of every refined row (lowest class wins ties) and round(255 * max softmax) written at its site.",
    ),
)

BY_NAME: dict[str, Op] = {op.name: op for op in OPS}


def op_record(name: str, where: str = "") -> Op:
    """The record of op ``name``; UnsupportedOp when the contract has none."""
    if name not in BY_NAME:
        raise UnsupportedOp(
            f"{where or 'node'}: op {DOMAIN}.{name} is not in contract version {CONTRACT_VERSION}; "
            f"known ops: {', '.join(sorted(BY_NAME))}. Export the refiner again with this version of crispseg"
        )
    return BY_NAME[name]


def _bad(where: str, op: Op, name: str, expected: str, found: Any) -> UnsupportedOp:
    return UnsupportedOp(
        f"{where or 'node'}: {op.name}.{name}: expected {expected}, found {found!r}; export the refiner again"
    )


def _check_value(op: Op, attribute: Attribute, value: Any, where: str) -> Any:
    kind = attribute.kind
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if kind == "int":
        # The range is that of TensorRT plugin fields: an int attribute is read as int32 there.
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
            raise _bad(where, op, attribute.name, "an int32", value)
    elif kind == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise _bad(where, op, attribute.name, "a number", value)
        value = float(value)
    elif kind == "floats":
        if isinstance(value, (str, int, float)) or not all(
            isinstance(v, (int, float)) and math.isfinite(v) for v in value
        ):
            raise _bad(where, op, attribute.name, "finite numbers", value)
        value = tuple(float(v) for v in value)
        if attribute.length is not None and len(value) != attribute.length:
            raise _bad(where, op, attribute.name, f"{attribute.length} numbers", value)
    elif not isinstance(value, str):
        raise _bad(where, op, attribute.name, "a string", value)
    if attribute.choices and value not in attribute.choices:
        raise _bad(where, op, attribute.name, "one of " + ", ".join(str(c) for c in attribute.choices), value)
    if attribute.minimum is not None and value < attribute.minimum:
        raise _bad(where, op, attribute.name, f"at least {attribute.minimum}", value)
    return value


def check_attributes(op_name: str, attributes: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Validate a node's attributes and fill in defaults.

    Args:
        op_name: name of the op in the contract.
        attributes: plain values by name (int, float, str or bytes, sequence of float), plugin_* included.
        where: text that names the node in messages.

    Returns:
        Every attribute of the record with its value (floats as a tuple), without plugin_version, plugin_namespace.

    Raises:
        UnsupportedOp: unknown op or attribute, missing or wrong value, another plugin_version.
    """
    op = op_record(op_name, where)
    known = {attribute.name for attribute in op.attributes}
    for name, value in attributes.items():
        if name in PLUGIN_ATTRIBUTES:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if text != PLUGIN_ATTRIBUTES[name]:
                raise _bad(where, op, name, repr(PLUGIN_ATTRIBUTES[name]), text)
        elif name not in known:
            raise _bad(where, op, name, "no such attribute in contract version " + str(CONTRACT_VERSION), value)
    checked = {}
    for attribute in op.attributes:
        value = attributes.get(attribute.name, attribute.default)
        if value is None:
            raise _bad(where, op, attribute.name, f"a {attribute.kind}", None)
        checked[attribute.name] = _check_value(op, attribute, value, where)
    if op.name == "PixelFeatures":
        parse_features(checked["features"], where)
        if min(abs(s) for s in checked["std"]) == 0.0:
            raise _bad(where, op, "std", "numbers other than 0", checked["std"])
    elif op.name == "SparseConv2d" and math.isinf(checked["x_scale"]):
        raise _bad(where, op, "x_scale", "a finite number", checked["x_scale"])
    return checked


def check_connections(
    op_name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Any], where: str = ""
) -> tuple[dict[str, str], dict[str, str]]:
    """Name a node's inputs and outputs by their roles and validate which of them are connected.

    Returns:
        (inputs, outputs): role -> tensor name, "" for an unconnected optional one; every role is present.

    Raises:
        UnsupportedOp: too many, a missing required one, or a combination that has no meaning.
    """
    op = op_record(op_name, where)
    named = []
    for what, roles, names in (("input", op.inputs, inputs), ("output", op.outputs, outputs)):
        if len(names) > len(roles):
            raise _bad(where, op, f"{what}s", f"at most {len(roles)}", len(names))
        row = {role.name: (names[i] if i < len(names) else "") for i, role in enumerate(roles)}
        for role in roles:
            if not role.optional and not row[role.name]:
                raise _bad(where, op, f"{what} {role.name}", "a connected tensor", "")
        named.append(row)
    ins, outs = named
    if op.name == "PixelFeatures":
        wants = any(kind == "p" for kind, _ in parse_features(str(attributes.get("features", "rgb")), where))
        if wants != bool(ins["yi"]):
            raise _bad(where, op, "input yi", "connected exactly when a feature starts with p", ins["yi"])
    elif op.name == "SparseConv2d":
        if not any(outs.values()):
            raise _bad(where, op, "outputs", "at least one of y, z1, z2", "")
        for i in ("1", "2"):
            if len({bool(ins["scale" + i]), bool(ins["shift" + i]), bool(outs["z" + i])}) != 1:
                raise _bad(where, op, "z" + i, f"scale{i}, shift{i} and z{i} connected together", outs["z" + i])
    elif op.name == "EnsembleLogits":
        gated = attributes.get("mode", "gated") == "gated"
        weights = [bool(ins[role.name]) for role in op.inputs[3:]]
        if not (all(weights) if gated else not any(weights)):
            raise _bad(where, op, "weights", "all eight (gated) or none (entropy)", sum(weights))
    return ins, outs


def parse_features(text: str, where: str = "") -> tuple[tuple[str, float | None], ...]:
    """Split "rgb,xy,p,p>0.5" into (("rgb", None), ("xy", None), ("p", None), ("p", 0.5)); UnsupportedOp otherwise."""
    parsed: list[tuple[str, float | None]] = []
    for name in text.split(","):
        name = name.strip()
        if name in ("rgb", "xy", "p"):
            parsed.append((name, None))
            continue
        try:
            head, value = name.split(">")
            threshold = float(value)
        except ValueError:
            head, threshold = "", math.nan
        if head != "p" or not math.isfinite(threshold):
            raise UnsupportedOp(f"{where or 'features'}: expected rgb, xy, p or p>number, found {name!r} in {text!r}")
        parsed.append(("p", threshold))
    return tuple(parsed)


def feature_width(text: str, classes: int) -> int:
    """Number of columns F that PixelFeatures writes for this feature list."""
    return sum({"rgb": 3, "xy": 2, "p": classes}[kind] for kind, _ in parse_features(text))


def coarser(height: int, width: int) -> tuple[int, int]:
    """Grid of the next level; a grid of fewer than 3 rows or columns has an empty one below it."""
    return max(0, (height - 1) // 2), max(0, (width - 1) // 2)
