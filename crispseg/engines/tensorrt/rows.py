"""Rows of a refiner as the TensorRT plugins hold them: type, padded columns, and which are int8.

The columns of a type come in multiples (plugins/tensorrt/core/params.h, 4), and all outputs of a convolution and its
residual have the same number of them. So where one of them is int8, the fp16 ones beside it are as wide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, List, Mapping, Sequence, Set, Tuple

import numpy as np

from crispseg.engines.int8_rows import int8_rows
from crispseg.engines.native_graph import RawNode

FP32, FP16, INT8 = 0, 1, 2
COLUMNS = {FP32: 1, FP16: 16, INT8: 32}  # rows of a type have a multiple of this many columns


@dataclass(frozen=True)
class Rows:
    """A tensor of rows. ``layout``: for each stored column the network's column, -1 = zeros."""

    kind: int
    layout: Tuple[int, ...]


@dataclass(frozen=True)
class Int8Rows:
    """``scales``: of the tensors that are held as int8; ``wide``: all that have as many columns as int8 rows."""

    scales: Mapping[str, float] = field(default_factory=dict)
    wide: FrozenSet[str] = frozenset()

    def columns(self, kind: int, names: Sequence[str]) -> int:
        """Columns of the outputs ``names`` of one convolution are a multiple of this."""
        return COLUMNS[INT8 if self.wide.intersection(names) else kind]


def plan_int8(nodes: Sequence[RawNode], outputs: Sequence[str]) -> Int8Rows:
    """What of a refiner is int8. ``nodes``: in order, with Concat; ``outputs``: of the graph."""
    scales = int8_rows(nodes, outputs)
    linked: Dict[str, Set[str]] = {}
    residuals = {node.inputs["residual"] for node in nodes if node.op == "SparseConv2d"} - {""}
    for node in nodes:
        names: List[str] = []
        if node.op == "SparseConv2d":
            names = [name for name in [*node.outputs.values(), node.inputs["residual"]] if name]
        elif node.op == "Concat" and node.outputs["y"] in residuals:  # it is as wide as its parts make it
            names = [*node.outputs.values(), *node.inputs.values()]
        for name in names:
            linked.setdefault(name, set()).update(names)
    wide: Set[str] = set()
    reached = [name for name in scales]
    while reached:
        name = reached.pop()
        if name not in wide:
            wide.add(name)
            reached.extend(linked.get(name, ()))
    return Int8Rows(scales, frozenset(wide))


def plain_rows(kind: int, columns: int, multiple: int = 0) -> Rows:
    """Rows with the network's columns in order and zeros behind them."""
    multiple = multiple or COLUMNS[kind]
    width = -(-columns // multiple) * multiple
    return Rows(kind, tuple(range(columns)) + (-1,) * (width - columns))


def spread(values: np.ndarray, axis: int, layout: Sequence[int]) -> np.ndarray:
    """Put an axis into a layout: column i becomes values[layout[i]], zeros where that is -1."""
    index = np.asarray(layout)
    taken = np.take(values, np.maximum(index, 0), axis)
    shape = [1] * values.ndim
    shape[axis] = len(index)
    return np.where((index >= 0).reshape(shape), taken, np.float32(0))


def identity(stored: Sequence[int], wanted: Sequence[int]) -> np.ndarray:
    """float32 [1, stored, wanted]: the weight that moves every column to its place in another layout."""
    a, b = np.asarray(stored)[:, None], np.asarray(wanted)[None]
    found: Any = ((a == b) & (a >= 0)).astype(np.float32)
    return np.asarray(found[None])
