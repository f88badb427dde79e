"""Runs a stripped refiner with the CUDA kernels, by the table of plugins/tensorrt/core/params.h.

What a TensorRT engine with our plugins does, node by node, in Python: every tensor has memory of its own, taken before
the first run, and the engine's outputs are written where the caller bound them.
"""

from __future__ import annotations

import ctypes

import numpy as np
from onnx import helper, numpy_helper

from crispseg.engines import cuda
from crispseg.plugins import cuda_loader
from crispseg.plugins.loader import EXTENT, UPSAMPLE
from crispseg.plugins.ops import BY_NAME, parse_features

ITEM = {0: 4, 1: 2, 2: 1}
FEATURES = {"rgb": 0, "xy": 1, "p": 2}


def roles(op):
    """Names of the tensors by their bits."""
    inputs, outputs = ([tensor.name for tensor in side] for side in (BY_NAME[op].inputs, BY_NAME[op].outputs))
    if op == "SparseConv2d":
        inputs += ["dequant", "order"]
    if op == "DownMap":
        outputs += ["order"]
    if op == "EnsembleLogits":
        inputs = ["yi", "yo", "count", "gate"]
    return inputs, outputs


class Raw:
    """A stream of which only the handle is known."""

    copy, copy_rows = cuda.Stream.copy, cuda.Stream.copy_rows

    def __init__(self, context, handle):
        self.context, self.handle = context, handle


class Node:
    """One node: attributes, and role -> tensor name of what is connected."""

    def __init__(self, proto):
        self.op, names = proto.op_type, [list(proto.input), list(proto.output)]
        self.a = {item.name: helper.get_attribute_value(item) for item in proto.attribute}
        self.a = {name: value.decode() if isinstance(value, bytes) else value for name, value in self.a.items()}
        self.all = names
        if self.op == "Concat":
            return
        self.i, self.o = {}, {}
        for side, mask, known, given in zip((self.i, self.o), (self.a["inputs"], self.a["outputs"]), roles(self.op),
                                            names):  # fmt: skip
            bits = [name for bit, name in enumerate(known) if mask >> bit & 1]
            assert len(bits) == len(given), "the mask and the connected tensors"
            side.update(zip(bits, given))


class StrippedEngine:
    """A stripped model on a device."""

    def __init__(self, model, context, kernels):
        self.context, self.kernels = context, kernels
        self.nodes = [Node(node) for node in model.graph.node]
        self.given = {value.name for value in [*model.graph.input, *model.graph.output]}
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
        self.kinds = {}  # rows: csg_type
        self.buffers = {}
        for tensor in model.graph.initializer:
            value = numpy_helper.to_array(tensor)
            self.shapes[tensor.name] = list(value.shape)
            self.buffers[tensor.name] = cuda.upload_now(context, value)
        room = 1
        for node in self.nodes:
            for name, shape, kind in self.results(node):
                self.shapes[name], self.kinds[name] = shape, kind
                if name not in self.given:
                    self.buffers[name] = context.alloc(int(np.prod(shape)) * ITEM[kind])
            room = max(room, self.scratch(node))
        self.workspace = context.alloc(room)

    def results(self, node):
        """(name, shape, type) of a node's outputs; int32 counts as fp32."""
        a, shapes = node.a, self.shapes
        if node.op == "Concat":
            parts = [shapes[name] for name in node.all[0]]
            return [(node.all[1][0], [parts[0][0], sum(p[1] for p in parts)], self.kinds[node.all[0][0]])]
        rows = shapes[node.i["coords"]][0] if "coords" in node.i else 0
        plane, sides = [-(-a.get("height", 0) * a.get("width", 0) // 4)], {}
        if node.op == "SelectPixels":
            sides = {"labels": plane, "confidence": plane, "coords": [a["capacity"], 2], "count": [1], "found": [1]}
        elif node.op == "PixelFeatures":
            sides = {"x": [rows, a["columns"]]}
        elif node.op == "LogitsAt":
            sides = {"yi": [rows, shapes[node.i["logits"]][1]]}
        elif node.op == "SubmanifoldMap":
            sides = {"map": [rows, 9]}
        elif node.op == "DownMap":
            below = max(1, min(4 * rows, (a["height"] - 1) // 2 * ((a["width"] - 1) // 2)))
            sides = {"coords_out": [below, 2], "count_out": [1], "down": [below, 9], "up": [rows, 9], "order": [rows]}
        elif node.op == "SparseConv2d":
            sides = dict.fromkeys(("y", "z1", "z2"), [shapes[node.i.get("map", node.i["x"])][0], a["cout"]])
        elif node.op == "EnsembleLogits":
            sides = {"ye": shapes[node.i["yi"]]}
        else:
            sides = {"labels_out": plane, "confidence_out": plane}
        return [(name, sides[role], a.get(role + "_type", 0)) for role, name in node.o.items()]

    def scratch(self, node):
        a, library = node.a, self.kernels.library
        if node.op == "SelectPixels":
            return library.csg_select_workspace(a["height"], a["width"])
        if node.op in ("SubmanifoldMap", "DownMap"):
            return library.csg_map_workspace(a["height"], a["width"])
        if node.op == "SparseConv2d":
            return library.csg_conv_workspace(self.kernels.handle, ctypes.byref(self.conv(node, lambda name: None)))
        return 0

    def conv(self, node, at):
        a, i, o = node.a, node.i, node.o
        c = cuda_loader.Conv(type=a["x_type"], ldx=a["cin"], K=a["taps"], cin=a["cin"], cout=a["cout"], relu=a["relu"])
        c.capacity = self.shapes[i.get("map", i["x"])][0]
        c.d_x, c.d_map, c.d_order = at(i["x"]), at(i.get("map")), at(i.get("order"))
        c.d_count, c.d_weight, c.d_bias = at(i["count"]), at(i["weight"]), at(i.get("bias"))
        c.residual_type, c.d_residual, c.y_type, c.d_y = (
            a["residual_type"], at(i.get("residual")), a["y_type"], at(o.get("y")))  # fmt: skip
        c.ldr = c.ldy = a["cout"]
        c.d_dequant, c.y_quant = at(i.get("dequant")), a.get("y_quant", 0)
        for n in (0, 1):
            c.d_scale[n], c.d_shift[n] = at(i.get("scale%d" % (n + 1))), at(i.get("shift%d" % (n + 1)))
            c.z_type[n], c.d_z[n], c.ldz[n] = a["z%d_type" % (n + 1)], at(o.get("z%d" % (n + 1))), a["cout"]
            c.z_quant[n] = a.get("z%d_quant" % (n + 1), 0)
        return c

    def enqueue(self, handle, addresses):
        """Put a run on a stream; ``addresses``: of the graph's inputs and outputs."""
        stream = Raw(self.context, handle)

        def at(name):
            return None if name is None else addresses[name] if name in self.given else self.buffers[name].address

        for node in self.nodes:
            getattr(self, "run_" + node.op)(node, node.a, stream, at)

    def call(self, name, stream, *arguments):
        self.kernels.call(name, stream.handle, *arguments)

    def sites(self, node, at):
        return at(node.i["coords"]), at(node.i["count"]), self.shapes[node.i["coords"]][0]

    def source(self, node, at):
        a, name = node.a, node.i["logits"]
        return (a["logits_type"], at(name), *self.shapes[name][1:], a["height"], a["width"], UPSAMPLE[a["upsample"]])

    def room(self):
        return self.workspace.address, self.workspace.nbytes

    def run_SelectPixels(self, node, a, stream, at):  # noqa: N802
        outs = [at(node.o.get(name)) for name in ("labels", "confidence", "coords", "count", "found")]
        self.call("csg_select_pixels", stream, *self.source(node, at), a["threshold"], a["capacity"], *outs,
                  *self.room())  # fmt: skip

    def run_LogitsAt(self, node, a, stream, at):  # noqa: N802
        name = node.o["yi"]
        self.call("csg_logits_at", stream, *self.source(node, at), *self.sites(node, at), at(name),
                  self.shapes[name][1])  # fmt: skip

    def run_PixelFeatures(self, node, a, stream, at):  # noqa: N802
        kinds, features = parse_features(a["features"]), cuda_loader.Features()
        features.features, features.bgr = len(kinds), int(a["channel_order"] == "bgr")
        for n, (kind, above) in enumerate(kinds):
            features.kinds[n], features.values[n] = (FEATURES[kind], 0) if above is None else (3, above)
        features.mean[:], features.std[:] = a["mean"], a["std"]
        classes = self.shapes[node.i["yi"]][1] if "yi" in node.i else 0
        self.call("csg_pixel_features", stream, at(node.i["image"]), a["height"], a["width"], *self.sites(node, at),
                  at(node.i.get("yi")), classes, classes, ctypes.byref(features), a["x_type"], at(node.o["x"]),
                  a["columns"])  # fmt: skip

    def run_SubmanifoldMap(self, node, a, stream, at):  # noqa: N802
        self.call("csg_submanifold_map", stream, *self.sites(node, at), a["height"], a["width"], at(node.o["map"]),
                  *self.room())  # fmt: skip

    def run_DownMap(self, node, a, stream, at):  # noqa: N802
        outs = [at(node.o[name]) for name in ("coords_out", "count_out", "down", "up")]
        below = self.shapes[node.o["coords_out"]][0]
        self.call("csg_down_map", stream, *self.sites(node, at), a["height"], a["width"], EXTENT[a["extent"]], below,
                  *outs, *self.room())  # fmt: skip
        if "order" in node.o:
            self.call("csg_parity_order", stream, *self.sites(node, at), a["height"], a["width"],
                      at(node.o["order"]), *self.room())  # fmt: skip

    def run_SparseConv2d(self, node, a, stream, at):  # noqa: N802
        conv = self.conv(node, at)
        conv.d_workspace, conv.workspace_bytes = self.room()
        self.call("csg_sparse_conv", stream, ctypes.byref(conv))

    def run_Concat(self, node, a, stream, at):  # noqa: N802
        item, (rows, columns) = ITEM[self.kinds[node.all[0][0]]], self.shapes[node.all[1][0]]
        target = at(node.all[1][0])
        for name in node.all[0]:
            width = item * self.shapes[name][1]
            stream.copy_rows(target, item * columns, at(name), width, width, rows)
            target += width

    def run_EnsembleLogits(self, node, a, stream, at):  # noqa: N802
        i, (rows, classes) = node.i, self.shapes[node.i["yi"]]
        parts = [
            at(i["yi"]),
            classes,
            a["yo_type"],
            at(i["yo"]),
            self.shapes[i["yo"]][1],
            at(i["count"]),
            rows,
            classes,
        ]
        if a["mode"] == "gated":
            parts += [a["hidden"], at(i["gate"])]
        self.call("csg_ensemble_" + a["mode"], stream, *parts, at(node.o["ye"]), classes)

    def run_ScatterLabels(self, node, a, stream, at):  # noqa: N802
        for name in ("labels", "confidence"):
            stream.copy(at(node.o[name + "_out"]), at(node.i[name]), a["height"] * a["width"])
        outs = [at(node.o[name]) for name in ("labels_out", "confidence_out")]
        rows, classes = self.shapes[node.i["ye"]]
        self.call("csg_scatter_labels", stream, *outs, a["height"], a["width"], at(node.i["coords"]),
                  at(node.i["count"]), rows, at(node.i["ye"]), classes, classes)  # fmt: skip

    def close(self):
        for buffer in [*self.buffers.values(), self.workspace]:
            buffer.close()
