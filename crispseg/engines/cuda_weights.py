"""A refiner's constants on the GPU: packed, in one allocation, uploaded once."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import numpy as np

from crispseg.engines.cuda import Buffer, upload_now
from crispseg.engines.cuda_kernels import TYPES, Kernels
from crispseg.engines.cuda_plan import conv_type
from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode
from crispseg.errors import UnsupportedOp

MAX_HIDDEN = 128
_ALIGN = 256
_GATE = [kind + str(i) for i in range(1, 5) for kind in "wb"]


class DeviceWeights:
    """``address(key)``: of a constant's name, or of a node's ``#weight``, ``#dequant`` or ``#gate``."""

    def __init__(self, kernels: Kernels, graph: Graph, precision: str) -> None:
        """Packs and uploads what the nodes need; the graph's constants are let go.

        Raises:
            UnsupportedOp: an ensemble wider than the kernel runs.
            InputError: no room on the device.
        """
        self.hidden: Dict[str, int] = {}  # units of each gated ensemble, by node
        self._offsets: Dict[str, int] = {}
        self._scales: Dict[str, np.ndarray] = {}  # of int8 weights
        self._parts: List[Tuple[int, np.ndarray]] = []
        self._size = 0
        for node in graph.nodes:
            if node.op == "SparseConv2d":
                self._conv(kernels, graph, node, precision)
            elif node.op == "EnsembleLogits" and node.attributes["mode"] == "gated":
                hidden = graph.raw.constants[node.inputs["w1"]].shape[0]
                if hidden > MAX_HIDDEN:
                    raise UnsupportedOp(
                        "%s: node %r: an ensemble with %d hidden units; on the GPU at most %d, use --backend native"
                        % (graph.raw.path, node.name, hidden, MAX_HIDDEN)
                    )
                self.hidden[node.name] = hidden
                values = [np.ravel(graph.raw.constants[node.inputs[role]]) for role in _GATE]
                self._add(node.name + "#gate", np.concatenate(values).astype(np.float32))
        whole = np.zeros(max(1, self._size), np.uint8)
        for offset, part in self._parts:
            whole[offset : offset + part.nbytes] = part.view(np.uint8).ravel()
        self._parts, self._scales = [], {}
        graph.raw.constants.clear()
        self._buffer: Buffer = upload_now(kernels.context, whole)

    def _add(self, key: str, array: np.ndarray) -> None:
        if key not in self._offsets:
            self._offsets[key] = self._size
            self._parts.append((self._size, np.ascontiguousarray(array)))
            self._size += -(-array.nbytes // _ALIGN) * _ALIGN

    def _conv(self, kernels: Kernels, graph: Graph, node: RawNode, precision: str) -> None:
        kind = conv_type(node, precision)
        key = "%s#%s" % (node.inputs["weight"], kind)
        if key not in self._offsets:
            weight = np.ascontiguousarray(graph.raw.constants[node.inputs["weight"]], np.float32)
            packed = np.zeros(kernels.size("csg_packed_bytes", TYPES[kind], *weight.shape), np.uint8)
            scales = np.zeros(weight.shape[2], np.float32)
            kernels.check("csg_pack_weight", kernels.library.csg_pack_weight(
                TYPES[kind], weight.ctypes.data, *weight.shape, packed.ctypes.data, scales.ctypes.data))  # fmt: skip
            self._add(key, packed)
            self._scales[key] = scales
        self._offsets[node.name + "#weight"] = self._offsets[key]
        if kind == "int8":
            self._add(node.name + "#dequant", self._scales[key] * np.float32(node.attributes["x_scale"]))
        for role in ("bias", "scale1", "shift1", "scale2", "shift2"):
            if node.inputs[role]:
                self._add(node.inputs[role], np.asarray(graph.raw.constants[node.inputs[role]], np.float32))

    def address(self, key: str) -> Any:
        """Device address, None for "" (not connected)."""
        return self._buffer.address + self._offsets[key] if key else None

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._buffer.nbytes

    def close(self) -> None:
        """Free them."""
        self._buffer.close()
