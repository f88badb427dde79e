"""The native engine: runs refiner.onnx on the CPU with the kernels of libcrispseg.

One node is one call into the library. Weights are packed at load; buffers are planned at load (``native_plan``), grow
with the largest frame seen, and are reused from then on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from crispseg.engines.cache import Artefact
from crispseg.engines.int8_rows import CONVERT
from crispseg.engines.native_artefact import GRAPH, read_compiled
from crispseg.engines.native_check import Graph, check_graph, check_inputs
from crispseg.engines.native_fuse import fuse_shortcuts
from crispseg.engines.native_graph import read_graph
from crispseg.engines.native_int8 import bytes_of
from crispseg.engines.native_layers import Layer
from crispseg.engines.native_nodes import Nodes
from crispseg.engines.native_plan import Need, needed
from crispseg.engines.native_weights import Compiled, Weights, prepare
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, InputError
from crispseg.plugins.loader import Native

_STAGES = {
    "SelectPixels": "select", "LogitsAt": "select", "PixelFeatures": "select", "SubmanifoldMap": "maps",
    "DownMap": "maps", "SparseConv2d": "conv", "Concat": "conv", "EnsembleLogits": "ensemble",
    "ScatterLabels": "scatter", CONVERT: "conv",
}  # fmt: skip


def load(
    path: Union[str, Path],
    spec: Optional[EngineSpec] = None,
    isa: str = "",
    artefact: Optional[Artefact] = None,
    why: str = "",
) -> NativeEngine:
    """Open a refiner.

    Args:
        path: refiner.onnx or refiner.int8.onnx (op contract version 1).
        spec: threads are used; the provider concerns dense networks only.
        isa: instruction set, "" = the best of this CPU.
        artefact: what `crispseg build --backend native` made of this file; without one the weights are packed now.
        why: there is no artefact, for ``describe``.

    Raises:
        BundleError: the file or the artefact is missing, damaged, or does not fit together.
        UnsupportedOp: an operator, attribute or contract version that the engine does not run.
        EnvironmentMismatch: the native library or the onnx package is missing.
    """
    spec = spec or EngineSpec()
    if artefact is None:
        engine = NativeEngine(check_graph(read_graph(path, floats=False)), spec, isa)
        engine.why_packed = why or engine.why_packed
        return engine
    try:
        graph = check_graph(read_graph(path, artefact.read(GRAPH)))
        engine = NativeEngine(graph, spec, isa, read_compiled(artefact))
    except BundleError as error:
        advice = "" if artefact.rebuild in str(error) else "; %s" % artefact.rebuild
        raise BundleError("%s%s" % (error, advice)) from None
    engine.compiled = str(artefact.path)
    return engine


class NativeEngine:
    """A loaded refiner. Used by one thread at a time; it owns its worker threads.

    Attributes:
        inputs, outputs: name -> (numpy dtype, shape), None for a side that depends on the frame.
        capacity: most refined pixels a frame; may be lowered between frames.
        stage_times: ms of the last run by stage: select, maps, conv, ensemble, scatter.
        node_times: ms of the last run by node.
        compiled: directory of the artefact that the weights are mapped from; "" = packed into memory at load.
        why_packed: why there was no artefact, and the command that makes one.
    """

    def __init__(self, graph: Graph, spec: EngineSpec, isa: str = "", compiled: Optional[Compiled] = None) -> None:
        self.path = graph.raw.path
        self.spec = spec
        self.capacity = min(spec.capacity or graph.capacity, graph.capacity)
        self.stage_times: Dict[str, float] = {}
        self.node_times: Dict[str, float] = {}
        self.compiled, self.why_packed = "", "`crispseg build --backend native` does it once"
        self._native: Any = Native(spec.thread_count, isa)
        self._graph, rows = bytes_of(fuse_shortcuts(graph))
        self._needs: Dict[Tuple[str, ...], Need] = {}
        self._weights = prepare(self._native, self._graph, compiled, rows=rows)
        self._nodes: Any = Nodes(self._native, self._graph, self._weights, rows)
        self.inputs = {
            "image": (np.uint8, [graph.height, graph.width, 3]),
            "logits": (np.float32, [1, graph.classes, *graph.low]),
        }
        self.outputs = {name: self._port(name) for name in graph.raw.outputs}

    # ---- load -----------------------------------------------------------------------------------------------------

    def _port(self, name: str) -> Tuple[Any, List[Optional[int]]]:
        tensor = self._graph.tensors[name]
        shapes: Dict[str, Tuple[Any, List[Optional[int]]]] = {
            "pixels": (np.uint8, [self._graph.height, self._graph.width]),
            "coords": (np.int32, [None, 2]),
            "count": (np.int32, [1]),
            "found": (np.int32, [1]),
            "map": (np.int32, [None, tensor.columns]),
            "matrix": (np.float32, [None, tensor.columns]),
        }
        return shapes[tensor.kind]

    # ---- run ------------------------------------------------------------------------------------------------------

    def run(self, inputs: Dict[str, np.ndarray], outputs: Optional[Sequence[str]] = None) -> Dict[str, np.ndarray]:
        """Refine one frame.

        Args:
            inputs: image uint8 [H,W,3] RGB and logits float32 [1,C,h,w].
            outputs: names wanted (default: all of the graph). What none of them needs is not computed.

        Returns:
            New arrays by name.

        Raises:
            InputError: an input is missing, unknown, or of another dtype or shape; an output is unknown; memory is out.
        """
        if self._native is None:
            raise InputError("%s: the engine is closed" % self.path)
        names = tuple(self.outputs if outputs is None else outputs)
        for name in names:
            if name not in self.outputs:
                raise InputError("%s: output %r: expected one of %s" % (self.path, name, ", ".join(self.outputs)))
        given = check_inputs(self.path, self.inputs, inputs)
        need = self._needs.get(names)
        if need is None:
            need = self._needs[names] = needed(self._graph, names)
        self._nodes.begin(given, need, self.capacity)
        stages = {"select": 0.0, "maps": 0.0, "conv": 0.0, "ensemble": 0.0, "scatter": 0.0}
        times: Dict[str, float] = {}
        nodes = self._graph.nodes
        last = time.perf_counter()
        try:
            for index in need.nodes:
                node = nodes[index]
                self._nodes.run(index)
                now = time.perf_counter()
                times[node.name] = (now - last) * 1e3
                stages[_STAGES[node.op]] += times[node.name]
                last = now
            result = {name: self._nodes.take(name) for name in names}
        except MemoryError:
            raise InputError(
                "%s: not enough memory for %d active pixels; export the bundle with a smaller capacity or a higher "
                "threshold" % (self.path, self._nodes.active)
            ) from None
        stages["scatter"] += (time.perf_counter() - last) * 1e3
        self.stage_times, self.node_times = stages, times
        self._nodes.end()
        return result

    def layers(self) -> List[Layer]:
        """The convolutions of the last run, in the order in which they ran; empty before the first."""
        return self._nodes.layers(self.node_times) if self._nodes else []

    # ---- the rest -------------------------------------------------------------------------------------------------

    def memory(self) -> Dict[str, int]:
        """Bytes held: packed weights, feature matrices, coordinates and maps, scratch of the library."""
        return {
            "weights": self._weights.nbytes,
            **(self._nodes.memory if self._nodes else {"features": 0, "maps": 0}),
            "scratch": 0 if self._native is None else self._native.scratch_bytes,
        }

    def describe(self) -> Dict[str, Any]:
        """Backend, instruction set, threads, ports and memory, as JSON-able values."""
        closed = self._native is None
        return {
            "backend": "native",
            "version": "" if closed else self._native.library.cs_build_info().decode("utf-8", "replace"),
            "file": self.path.name,
            "isa": "" if closed else self._native.isa,
            "int8": self._nodes.int8_kernels if self._nodes else "",
            "threads": self.spec.thread_count,
            "compiled": self.compiled or "no: packed at load; %s" % self.why_packed,
            "inputs": {name: [np.dtype(dtype).name, list(shape)] for name, (dtype, shape) in self.inputs.items()},
            "outputs": {name: [np.dtype(dtype).name, list(shape)] for name, (dtype, shape) in self.outputs.items()},
            "memory_bytes": self.memory(),
        }

    def close(self) -> None:
        """Free threads and memory; a closed engine refuses to run."""
        if self._native is not None:
            self._native.close()
            self._native = None
        self._nodes, self._weights = None, Weights()

    def __enter__(self) -> NativeEngine:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
