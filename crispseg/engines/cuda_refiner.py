"""The refiner on the GPU: refiner.onnx with the CUDA kernels of crispseg.

Validated like the native engine's. Memory is planned and weights are packed when it is loaded; after that
:meth:`CudaRefiner.enqueue` only puts kernels on a stream (no allocation, no wait, nothing read back), so that it can be
captured in a CUDA graph. How many rows are real stands on the device; grids are sized by the capacity.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from crispseg.engines.cuda import Stream, upload_now
from crispseg.engines.cuda_clock import StageClock
from crispseg.engines.cuda_fetch import fetch
from crispseg.engines.cuda_kernels import TYPES, Kernels
from crispseg.engines.cuda_memory import DeviceMemory
from crispseg.engines.cuda_plan import ITEM_BYTES, conv_type, level_capacities, plan_device
from crispseg.engines.cuda_weights import DeviceWeights
from crispseg.engines.int8_rows import CONVERT, int8_rows, with_conversions
from crispseg.engines.native_check import Graph, check_graph, check_inputs
from crispseg.engines.native_graph import RawNode, read_graph
from crispseg.engines.native_plan import Need, needed
from crispseg.engines.spec import EngineSpec
from crispseg.errors import InputError, UnsupportedOp
from crispseg.plugins import cuda_loader
from crispseg.plugins.loader import EXTENT, UPSAMPLE
from crispseg.plugins.ops import parse_features

STAGES = {
    "SelectPixels": "select", "LogitsAt": "select", "PixelFeatures": "select", "SubmanifoldMap": "maps",
    "DownMap": "maps", "SparseConv2d": "conv", "Concat": "conv", CONVERT: "conv", "EnsembleLogits": "ensemble",
    "ScatterLabels": "scatter",
}  # fmt: skip
_DTYPES = {"fp32": np.float32, "fp16": np.float16}
_MAPS = ("SubmanifoldMap", "DownMap")
_FEATURES = {"rgb": 0, "xy": 1, "p": 2}
_PROBABLE = 3  # feature code of p > value


def load(
    path: Union[str, Path], kernels: Kernels, spec: Optional[EngineSpec] = None, logits_type: str = "fp32"
) -> CudaRefiner:
    """Open a refiner on the device of ``kernels``.

    Args:
        path: refiner.onnx (op contract version 1).
        kernels: from ``cuda_kernels.open_kernels``.
        spec: precision and capacity are used. What a file holds as int8 runs in int8; the rest is "fp32" or "fp16".
            "int8" stands for fp16 there, and wants an int8 file.
        logits_type: of the base's logits in device memory, "fp32" or "fp16".

    Raises:
        BundleError, UnsupportedOp: as the native engine; UnsupportedOp also for precision int8 and a float file.
        InputError: no room on the device.
    """
    spec = spec or EngineSpec("cuda", precision="fp16")
    graph = check_graph(read_graph(path))
    if spec.precision == "int8" and not any(node.attributes.get("x_scale") for node in graph.nodes):
        raise UnsupportedOp(
            "%s: precision int8: expected convolutions with x_scale, found none; run `crispseg calibrate`, or use "
            "--precision fp16" % path
        )
    return CudaRefiner(graph, kernels, spec, logits_type)


class CudaRefiner:
    """A loaded refiner. One stream at a time uses it: the frames of several slots take turns in its memory.

    Attributes:
        inputs, outputs: name -> (numpy dtype, shape) as seen by :meth:`run`.
        stage_times: ms on the device of the last :meth:`run`, by stage.
        binds_image: whether a run that is not captured must come first at every new address of a frame.
    """

    binds_image = False

    def __init__(self, graph: Graph, kernels: Kernels, spec: EngineSpec, logits_type: str) -> None:
        self.path, self.spec, self.logits_type = graph.raw.path, spec, logits_type
        self.stage_times: Dict[str, float] = {}
        graph, scales = with_conversions(graph, int8_rows(graph.nodes, graph.raw.outputs))
        self._graph, self._kernels, self._context = graph, kernels, kernels.context
        self._most = min(spec.capacity or graph.capacity, graph.capacity)
        self._plan = plan_device(graph, spec.precision, self._most, scales)
        self._rows = self._plan.capacities
        self._memory = DeviceMemory(kernels, graph, self._plan)
        self._weights = DeviceWeights(kernels, graph, spec.precision)
        self._reserve()
        self._needs: Dict[Tuple[str, ...], Need] = {}
        self._need = Need((), frozenset(), frozenset(), {})
        self._stream = self._image = self._logits = None  # type: Any
        self.inputs = {"image": (np.uint8, [graph.height, graph.width, 3]),
                       "logits": (np.float32, [1, graph.classes, *graph.low])}  # fmt: skip
        self.outputs = {name: graph.tensors[name].kind for name in graph.raw.outputs}

    # ---- capacity ---------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Most refined pixels a frame. May be lowered, and raised up to what it was loaded with; captured graphs keep
        the capacity that they were captured with."""  # noqa: D209
        return self._rows[0]

    @capacity.setter
    def capacity(self, value: int) -> None:
        if not 1 <= value <= self._most:
            raise InputError("%s: capacity %d: expected 1 to %d" % (self.path, value, self._most))
        self._rows = level_capacities(self._graph, value)
        self._reserve()

    def _reserve(self) -> None:
        """Scratch for the convolutions at these capacities: the fewer rows, the more blocks share one sum."""
        convs = [self._conv(node) for node in self._graph.nodes if node.op == "SparseConv2d"]
        size, handle = self._kernels.library.csg_conv_workspace, self._kernels.handle
        self._memory.reserve(max((int(size(handle, ctypes.byref(a))) for a in convs), default=0))

    # ---- enqueue ----------------------------------------------------------------------------------------------------

    def enqueue(
        self,
        stream: Stream,
        image: int,
        logits: int,
        outputs: Sequence[str] = ("labels", "count", "found"),
        clock: Optional[StageClock] = None,
    ) -> None:
        """Put one frame's refinement on a stream.

        Args:
            stream: of the same device; may be capturing.
            image: address of uint8 [H,W,3] RGB.
            logits: address of [1,C,h,w] in ``logits_type``.
            outputs: what is wanted; what none of it needs is not computed. It lies at :meth:`address` afterwards,
                until the next frame.
            clock: gets a mark at the end of each stage.
        """
        names = tuple(outputs)
        for name in names:
            if name not in self.outputs:
                raise InputError("%s: output %r: expected one of %s" % (self.path, name, ", ".join(self.outputs)))
        if names not in self._needs:
            self._needs[names] = needed(self._graph, names)
        self._need, self._stream, self._image, self._logits = self._needs[names], stream, image, logits
        order = self._ordered(self._need.nodes)
        nodes = self._graph.nodes
        for position, index in enumerate(order):
            getattr(self, "_run_" + nodes[index].op)(index, nodes[index])
            stage = STAGES[nodes[index].op]
            last = position + 1 == len(order)
            if clock is not None and (last or STAGES[nodes[order[position + 1]].op] != stage):
                clock.mark(stream, stage)

    def _ordered(self, indices: Sequence[int]) -> List[int]:
        """All maps before the first convolution: they need coordinates only, and so each stage is in one piece.

        The order of the other nodes, which the memory plan relies on, stays.
        """
        nodes = self._graph.nodes
        maps = [i for i in indices if nodes[i].op in _MAPS]
        rest = [i for i in indices if nodes[i].op not in _MAPS]
        first = next((at for at, i in enumerate(rest) if STAGES[nodes[i].op] != "select"), len(rest))
        return rest[:first] + maps + rest[first:]

    def address(self, name: str) -> int:
        """Device address of an output: uint8 [H,W], int32 [capacity,2], int32 [1], or a matrix."""
        tensor = self._graph.tensors[name]
        if tensor.kind == "pixels":
            return self._memory.pixels[name].address
        if tensor.kind == "count":
            return self._memory.count(tensor.level)
        if tensor.kind == "found":
            return self._memory.found
        return self._memory.matrix(name)[0] if tensor.kind == "matrix" else self._memory.ints(name)

    def _call(self, name: str, *arguments: Any) -> None:
        self._kernels.call(name, self._stream.handle, *arguments)

    def _sites(self, node: RawNode) -> Tuple[int, int, int]:
        """Coordinates, count and capacity of the node's rows."""
        level = self._graph.tensors[node.inputs["coords"]].level
        return self._memory.ints(node.inputs["coords"]), self._memory.count(level), self._rows[level]

    def _source(self) -> Tuple[Any, ...]:
        """The logits: type, address, C, h, w, H, W."""
        graph = self._graph
        return (TYPES[self.logits_type], self._logits, graph.classes, *graph.low, graph.height, graph.width)

    def _run_SelectPixels(self, _: int, node: RawNode) -> None:  # noqa: N802
        out = node.outputs
        confidence = self._memory.pixels[out["confidence"]].address if out["confidence"] in self._need.tensors else None
        self._call(
            "csg_select_pixels", *self._source(), UPSAMPLE[node.attributes["upsample"]], node.attributes["threshold"],
            self._rows[0], self._memory.pixels[out["labels"]].address, confidence, self._memory.ints(out["coords"]),
            self._memory.count(0), self._memory.found, *self._memory.scratch(),
        )  # fmt: skip

    def _run_LogitsAt(self, _: int, node: RawNode) -> None:  # noqa: N802
        up = UPSAMPLE[node.attributes["upsample"]]
        self._call("csg_logits_at", *self._source(), up, *self._sites(node), *self._memory.matrix(node.outputs["yi"]))

    def _run_PixelFeatures(self, _: int, node: RawNode) -> None:  # noqa: N802
        graph, features, name = self._graph, cuda_loader.Features(), node.outputs["x"]
        kinds = parse_features(node.attributes["features"])
        features.features, features.bgr = len(kinds), int(node.attributes["channel_order"] == "bgr")
        for i, (kind, above) in enumerate(kinds):
            features.kinds[i] = _FEATURES[kind] if above is None else _PROBABLE
            features.values[i] = 0.0 if above is None else above
        features.mean[:], features.std[:] = node.attributes["mean"], node.attributes["std"]
        yi = self._memory.matrix(node.inputs["yi"]) if node.inputs["yi"] else (None, 0)
        self._call(
            "csg_pixel_features", self._image, graph.height, graph.width, *self._sites(node), *yi, graph.classes,
            ctypes.byref(features), TYPES[self._plan.types[name]], *self._memory.matrix(name),
        )  # fmt: skip

    def _run_SubmanifoldMap(self, _: int, node: RawNode) -> None:  # noqa: N802
        grid = self._graph.grids[self._graph.tensors[node.inputs["coords"]].level]
        table = self._memory.ints(node.outputs["map"])
        self._call("csg_submanifold_map", *self._sites(node), *grid, table, *self._memory.scratch())

    def _run_DownMap(self, _: int, node: RawNode) -> None:  # noqa: N802
        out = node.outputs
        level = self._graph.tensors[node.inputs["coords"]].level
        below = self._graph.tensors[out["coords_out"]].level
        grid = self._graph.grids[level]
        self._call(
            "csg_down_map", *self._sites(node), *grid, EXTENT[node.attributes["extent"]], self._rows[below],
            self._memory.ints(out["coords_out"]), self._memory.count(below), self._memory.ints(out["down"]),
            self._memory.ints(out["up"]), *self._memory.scratch(),
        )  # fmt: skip
        if out["up"] in self._need.read_maps:
            order = self._memory.order(level)
            self._call("csg_parity_order", *self._sites(node), *grid, order, *self._memory.scratch())

    def _conv(self, node: RawNode) -> Any:
        """The arguments of a convolution, as far as they are sizes."""
        a, tensors, ins = cuda_loader.Conv(), self._graph.tensors, node.inputs
        a.type, a.capacity = TYPES[conv_type(node, self.spec.precision)], self._rows[tensors[ins["count"]].level]
        a.K, a.cin = tensors[ins["map"]].columns if ins["map"] else 1, tensors[ins["x"]].columns
        a.cout = max(tensors[name].columns for name in node.outputs.values() if name)
        return a

    def _run_SparseConv2d(self, _: int, node: RawNode) -> None:  # noqa: N802
        a, ins, outs, wanted, graph = self._conv(node), node.inputs, node.outputs, self._need.tensors, self._graph
        types, scales, level = self._plan.types, self._plan.scales, graph.tensors[ins["count"]].level
        a.d_x, a.ldx = self._memory.matrix(ins["x"])
        a.d_count = self._memory.count(level)
        a.d_workspace, a.workspace_bytes = self._memory.scratch()
        if ins["map"]:
            table = graph.tensors[ins["map"]]
            a.d_map = self._memory.ints(ins["map"])
            if table.source > level:  # up: rows of one parity read the same taps
                a.d_order = self._memory.order(level)
        a.d_weight = self._weights.address(node.name + "#weight")
        if node.attributes["x_scale"]:
            a.d_dequant = self._weights.address(node.name + "#dequant")
        a.d_bias, a.relu = self._weights.address(ins["bias"]), node.attributes["relu"]
        if ins["residual"]:
            a.residual_type = TYPES[types[ins["residual"]]]
            a.d_residual, a.ldr = self._memory.matrix(ins["residual"])
        if outs["y"] in wanted:
            a.y_type = TYPES[types[outs["y"]]]
            a.y_quant = scales.get(outs["y"], 0.0)
            a.d_y, a.ldy = self._memory.matrix(outs["y"])
        for i, role in enumerate(("z1", "z2")):
            a.d_scale[i] = self._weights.address(ins["scale%d" % (i + 1)])
            a.d_shift[i] = self._weights.address(ins["shift%d" % (i + 1)])
            if outs[role] in wanted:
                a.z_type[i] = TYPES[types[outs[role]]]
                a.z_quant[i] = scales.get(outs[role], 0.0)
                a.d_z[i], a.ldz[i] = self._memory.matrix(outs[role])
        self._call("csg_sparse_conv", ctypes.byref(a))

    def _run_ConvertRows(self, _: int, node: RawNode) -> None:  # noqa: N802
        source, made = self._graph.tensors[node.inputs["x"]], node.outputs["y"]
        self._call(
            "csg_convert_rows", TYPES[self._plan.types[node.inputs["x"]]], *self._memory.matrix(node.inputs["x"]),
            TYPES[self._plan.types[made]], *self._memory.matrix(made), self._memory.count(source.level),
            self._rows[source.level], source.columns, node.attributes["scale"],
        )  # fmt: skip

    def _run_Concat(self, index: int, node: RawNode) -> None:  # noqa: N802
        target, stride = self._memory.matrix(node.outputs["y"])
        for role, name in node.inputs.items():
            tensor, item = self._graph.tensors[name], ITEM_BYTES[self._plan.types[name]]
            if (index, role) in self._plan.plan.copies:
                source, pitch = self._memory.matrix(name)
                width = item * tensor.columns
                self._stream.copy_rows(target, item * stride, source, item * pitch, width, self._rows[tensor.level])
            target += item * tensor.columns

    def _run_EnsembleLogits(self, _: int, node: RawNode) -> None:  # noqa: N802
        level = self._graph.tensors[node.inputs["count"]].level
        yo, ye = node.inputs["yo"], self._memory.matrix(node.outputs["ye"])
        rows = [*self._memory.matrix(node.inputs["yi"]), TYPES[self._plan.types[yo]], *self._memory.matrix(yo)]
        rows += [self._memory.count(level), self._rows[level], self._graph.classes]
        if node.attributes["mode"] == "gated":
            hidden = self._weights.hidden[node.name]
            self._call("csg_ensemble_gated", *rows, hidden, self._weights.address(node.name + "#gate"), *ye)
        else:
            self._call("csg_ensemble_entropy", *rows, *ye)

    def _run_ScatterLabels(self, _: int, node: RawNode) -> None:  # noqa: N802
        graph, addresses = self._graph, {}  # type: Graph, Dict[str, Any]
        for role in ("labels", "confidence"):
            old, new = self._memory.pixels[node.inputs[role]], self._memory.pixels[node.outputs[role + "_out"]]
            if role == "confidence" and node.outputs["confidence_out"] not in self._need.tensors:
                addresses[role] = None
                continue
            if new is not old:
                self._stream.copy(new.address, old.address, old.nbytes)
            addresses[role] = new.address
        self._call(
            "csg_scatter_labels", addresses["labels"], addresses["confidence"], graph.height, graph.width,
            *self._sites(node), *self._memory.matrix(node.inputs["ye"]), graph.classes,
        )  # fmt: skip

    # ---- the rest ---------------------------------------------------------------------------------------------------

    def run(self, inputs: Dict[str, np.ndarray], outputs: Optional[Sequence[str]] = None) -> Dict[str, np.ndarray]:
        """Refine one frame of the host and wait for it; pipelines use :meth:`enqueue`.

        Args:
            inputs: image uint8 [H,W,3] RGB and logits float32 [1,C,h,w].
            outputs: names wanted (default: all of the graph).

        Returns:
            New arrays by name; matrices as float32.

        Raises:
            InputError: an input is missing, unknown, or of another dtype or shape; an output is unknown.
        """
        check_inputs(self.path, self.inputs, inputs)
        names = list(self.outputs if outputs is None else outputs)
        self._context.activate()
        stream, clock = self._context.stream(), StageClock(self._context)
        image = upload_now(self._context, inputs["image"])
        logits = upload_now(self._context, inputs["logits"].astype(_DTYPES[self.logits_type]))
        clock.start(stream)
        self.enqueue(stream, image.address, logits.address, names, clock)
        rows = np.empty(len(self._graph.grids) + 1, np.int32)
        stream.download(rows, self._memory.count(0))
        stream.synchronize()
        self.stage_times = clock.times()
        return {name: fetch(stream, name, rows, self._graph, self._plan, self.address(name)) for name in names}

    def memory(self) -> Dict[str, int]:
        """Bytes on the device: packed weights, feature matrices, coordinates and maps, label maps, scratch."""
        return {"weights": self._weights.nbytes, **self._memory.sizes()}

    def describe(self) -> Dict[str, Any]:
        """Backend, precision, capacity, kernels and memory, as JSON-able values."""
        return {
            "backend": "cuda",
            "file": self.path.name,
            "precision": self.spec.precision,
            "int8_convolutions": sum(bool(node.attributes.get("x_scale")) for node in self._graph.nodes),
            "capacity": self.capacity,
            "level_capacities": list(self._rows),
            "kernels": self._kernels.describe(),
            "memory_bytes": self.memory(),
        }

    def close(self) -> None:
        """Free the device memory; a closed engine refuses to run."""
        self._memory.close()
        self._weights.close()

    def __enter__(self) -> CudaRefiner:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
