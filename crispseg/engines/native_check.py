"""What every tensor of a refiner is, worked out node by node, with every mismatch refused.

Rows belong to a *level*: level 0 holds the pixels that SelectPixels found, and each DownMap makes one more. Numbers of
rows are known only at run time, so a fit means: of the same level, and of the right number of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from crispseg.engines.native_graph import RawGraph, RawNode
from crispseg.errors import BundleError, InputError, UnsupportedOp
from crispseg.plugins.ops import coarser, feature_width

MAX_SIDE = 65536
MAX_CLASSES = 256
MAX_COLUMNS = 65536


@dataclass(frozen=True)
class Tensor:
    """kind: image, logits, pixels, coords, count, found, map or matrix.

    level: of the rows; source: level that a map's entries point into; columns: of a matrix.
    """

    kind: str
    level: int = 0
    source: int = 0
    columns: int = 0


@dataclass(frozen=True)
class Graph:
    """A refiner that fits together. ``grids[level]`` = (rows, columns) of the level's grid."""

    raw: RawGraph
    height: int
    width: int
    classes: int
    low: Tuple[int, int]
    capacity: int
    grids: Tuple[Tuple[int, int], ...]
    tensors: Dict[str, Tensor]

    @property
    def nodes(self) -> Tuple[RawNode, ...]:
        """Nodes in the order in which they run."""
        return self.raw.nodes


def check_graph(raw: RawGraph) -> Graph:
    """Type every tensor.

    Raises:
        BundleError: a tensor is missing, defined twice, used before it is defined, or does not fit its use.
        UnsupportedOp: sizes or structures that the engine does not run.
    """
    checker = _Checker(raw)
    for node in raw.nodes:
        checker.node(node)
    return checker.finished()


class _Checker:
    def __init__(self, raw: RawGraph) -> None:
        self.raw = raw
        self.tensors: Dict[str, Tensor] = {}
        self.grids: List[Tuple[int, int]] = []
        self.capacity = 0
        image, logits = raw.inputs.get("image"), raw.inputs.get("logits")
        if set(raw.inputs) != {"image", "logits"} or image is None or logits is None:
            raise BundleError(
                "%s: expected inputs image, logits; found %s" % (raw.path, ", ".join(raw.inputs) or "none")
            )
        if image[0] != "uint8" or len(image[1]) != 3 or image[1][2] != 3 or not _sides(image[1]):
            raise BundleError(
                "%s: input image: expected uint8 [H,W,3], found %s %s" % (raw.path, image[0], list(image[1]))
            )
        if logits[0] != "float32" or len(logits[1]) != 4 or logits[1][0] != 1 or not _sides(logits[1]):
            raise BundleError(
                "%s: input logits: expected float32 [1,C,h,w], found %s %s" % (raw.path, logits[0], list(logits[1]))
            )
        self.height, self.width = int(image[1][0]), int(image[1][1])
        _, self.classes, low_height, low_width = (int(side) for side in logits[1])
        self.low = (low_height, low_width)
        if self.height * self.width >= 2**31 or low_height * low_width >= 2**31 or self.classes > MAX_CLASSES:
            raise UnsupportedOp(
                "%s: frame %d x %d with %d classes is beyond the native engine (2^31 pixels, %d classes)"
                % (raw.path, self.height, self.width, self.classes, MAX_CLASSES)
            )
        self.tensors["image"], self.tensors["logits"] = Tensor("image"), Tensor("logits")

    def finished(self) -> Graph:
        raw = self.raw
        for name in raw.outputs:
            tensor = self.tensors.get(name)
            if tensor is None or tensor.kind in ("image", "logits"):
                raise BundleError("%s: output %r: expected a tensor that a node makes" % (raw.path, name))
        if not self.grids:
            raise BundleError("%s: expected one SelectPixels node, found none" % raw.path)
        return Graph(
            raw, self.height, self.width, self.classes, self.low, self.capacity, tuple(self.grids), self.tensors
        )

    def fail(self, node: RawNode, role: str, expected: str, found: Any) -> BundleError:
        return BundleError(
            "%s: node %r: %s.%s: expected %s, found %s; export the refiner again"
            % (self.raw.path, node.name, node.op, role, expected, found)
        )

    def get(self, node: RawNode, role: str, kind: str, level: Optional[int] = None) -> Tensor:
        name = node.inputs[role]
        tensor = self.tensors.get(name)
        if tensor is None:
            what = "a constant" if name in self.raw.constants else "none defined before"
            raise self.fail(node, role, "a %s %r" % (kind, name), what)
        if tensor.kind != kind:
            raise self.fail(node, role, "a " + kind, "%r, a %s" % (name, tensor.kind))
        if level is not None and tensor.level != level:
            raise self.fail(node, role, "rows of level %d" % level, "%r of level %d" % (name, tensor.level))
        return tensor

    def matrix(self, node: RawNode, role: str, level: int, columns: Optional[int] = None) -> Tensor:
        tensor = self.get(node, role, "matrix", level)
        if columns is not None and tensor.columns != columns:
            raise self.fail(node, role, "%d columns" % columns, "%r with %d" % (node.inputs[role], tensor.columns))
        return tensor

    def constant(self, node: RawNode, role: str, *shape: Optional[int]) -> np.ndarray:
        name = node.inputs[role]
        value = self.raw.constants.get(name)
        if value is None:
            raise self.fail(node, role, "a stored constant", repr(name))
        fits = value.ndim == len(shape) and all(want is None or want == got for want, got in zip(shape, value.shape))
        if value.dtype != np.float32 or not fits:
            wanted = ["any" if side is None else side for side in shape]
            raise self.fail(node, role, "float32 %s" % wanted, "%r %s %s" % (name, value.dtype, list(value.shape)))
        if max(value.shape) > MAX_COLUMNS:
            raise self.fail(node, role, "sides up to %d" % MAX_COLUMNS, list(value.shape))
        return value

    def define(self, node: RawNode, role: str, tensor: Tensor) -> None:
        name = node.outputs[role]
        if not name:
            return
        if name in self.tensors or name in self.raw.constants:
            raise self.fail(node, role, "a new tensor", "%r, defined before" % name)
        self.tensors[name] = tensor

    def size(self, node: RawNode, height: int, width: int) -> None:
        found = (node.attributes["height"], node.attributes["width"])
        if found != (height, width):
            raise self.fail(node, "height, width", "%d x %d" % (height, width), "%d x %d" % found)

    def sites(self, node: RawNode) -> int:
        """Level of the node's coords and count."""
        level = self.get(node, "coords", "coords").level
        self.get(node, "count", "count", level)
        return level

    def node(self, node: RawNode) -> None:
        getattr(self, "_" + node.op)(node)

    def _SelectPixels(self, node: RawNode) -> None:  # noqa: N802
        self.get(node, "logits", "logits")
        self.size(node, self.height, self.width)
        if self.grids:
            raise UnsupportedOp("%s: node %r: expected one SelectPixels, found two" % (self.raw.path, node.name))
        self.capacity = min(node.attributes["capacity"], self.height * self.width)
        self.grids.append((self.height, self.width))
        for role, kind in (
            ("labels", "pixels"), ("coords", "coords"), ("count", "count"), ("found", "found"), ("confidence", "pixels")
        ):  # fmt: skip
            self.define(node, role, Tensor(kind))

    def _PixelFeatures(self, node: RawNode) -> None:  # noqa: N802
        self.get(node, "image", "image")
        level = self.sites(node)
        self.size(node, self.height, self.width)
        if level != 0:
            raise self.fail(node, "coords", "the selected pixels", "level %d" % level)
        if node.inputs["yi"]:
            self.matrix(node, "yi", 0, self.classes)
        self.define(node, "x", Tensor("matrix", 0, 0, feature_width(node.attributes["features"], self.classes)))

    def _LogitsAt(self, node: RawNode) -> None:  # noqa: N802
        self.get(node, "logits", "logits")
        level = self.sites(node)
        self.size(node, self.height, self.width)
        if level != 0:
            raise self.fail(node, "coords", "the selected pixels", "level %d" % level)
        self.define(node, "yi", Tensor("matrix", 0, 0, self.classes))

    def _SubmanifoldMap(self, node: RawNode) -> None:  # noqa: N802
        level = self.sites(node)
        self.size(node, *self.grids[level])
        self.define(node, "map", Tensor("map", level, level, 9))

    def _DownMap(self, node: RawNode) -> None:  # noqa: N802
        level = self.sites(node)
        self.size(node, *self.grids[level])
        below = len(self.grids)
        self.grids.append(coarser(*self.grids[level]))
        self.define(node, "coords_out", Tensor("coords", below))
        self.define(node, "count_out", Tensor("count", below))
        self.define(node, "down", Tensor("map", below, level, 9))
        self.define(node, "up", Tensor("map", level, below, 9))

    def _SparseConv2d(self, node: RawNode) -> None:  # noqa: N802
        x = self.get(node, "x", "matrix")
        level, taps = x.level, 1
        if node.inputs["map"]:
            table = self.get(node, "map", "map")
            level, taps = table.level, table.columns
            if table.source != x.level:
                raise self.fail(node, "x", "rows of level %d (the map's)" % table.source, "level %d" % x.level)
        self.get(node, "count", "count", level)
        columns = self.constant(node, "weight", taps, x.columns, None).shape[2]
        if node.attributes["x_scale"] and node.inputs["weight"] not in self.raw.weight_scales:
            raise self.fail(node, "weight", "int8 values behind a DequantizeLinear, as x_scale is set", "float values")
        for role in ("bias", "scale1", "shift1", "scale2", "shift2"):
            if node.inputs[role]:
                self.constant(node, role, columns)
        if node.inputs["residual"]:
            self.matrix(node, "residual", level, columns)
        for role in ("y", "z1", "z2"):
            self.define(node, role, Tensor("matrix", level, 0, columns))

    def _Concat(self, node: RawNode) -> None:  # noqa: N802
        level = self.get(node, "0", "matrix").level
        columns = sum(self.matrix(node, role, level).columns for role in node.inputs)
        if columns > MAX_COLUMNS:
            raise self.fail(node, "y", "up to %d columns" % MAX_COLUMNS, columns)
        self.define(node, "y", Tensor("matrix", level, 0, columns))

    def _EnsembleLogits(self, node: RawNode) -> None:  # noqa: N802
        level = self.get(node, "count", "count").level
        classes = self.matrix(node, "yi", level, self.classes).columns
        self.matrix(node, "yo", level, classes)
        if node.attributes["mode"] == "gated":
            hidden = self.constant(node, "w1", None, 2 * classes + 2).shape[0]
            shapes = {"b1": (hidden,), "w2": (2, hidden), "b2": (2,), "w3": (hidden, classes), "b3": (hidden,),
                      "w4": (classes, hidden), "b4": (classes,)}  # fmt: skip
            for role, shape in shapes.items():
                self.constant(node, role, *shape)
        self.define(node, "ye", Tensor("matrix", level, 0, classes))

    def _ScatterLabels(self, node: RawNode) -> None:  # noqa: N802
        self.get(node, "labels", "pixels")
        self.get(node, "confidence", "pixels")
        level = self.sites(node)
        if level != 0:
            raise self.fail(node, "coords", "the selected pixels", "level %d" % level)
        self.matrix(node, "ye", 0, self.classes)
        self.define(node, "labels_out", Tensor("pixels"))
        self.define(node, "confidence_out", Tensor("pixels"))


def _sides(shape: Tuple[Any, ...]) -> bool:
    return all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in shape)


def check_inputs(path: Path, ports: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The arrays given to a refiner, contiguous.

    Args:
        path: its file, for messages.
        ports: name -> (numpy dtype, shape) of the inputs.
        inputs: name -> array.

    Raises:
        InputError: one is missing, unknown, or of another dtype or shape.
    """
    if set(inputs) != set(ports):
        raise InputError(
            "%s: expected inputs %s, found %s" % (path, ", ".join(ports), ", ".join(map(str, inputs)) or "none")
        )
    given = {}
    for name, (dtype, shape) in ports.items():
        value = inputs[name]
        if not isinstance(value, np.ndarray) or value.dtype != dtype or list(value.shape) != shape:
            found = "%s %s" % (value.dtype, list(value.shape)) if isinstance(value, np.ndarray) else type(value)
            raise InputError(
                "%s: input %s: expected %s %s (the bundle's frame size), found %s"
                % (path, name, np.dtype(dtype), shape, found)
            )
        given[name] = np.ascontiguousarray(value)
    return given
