"""A bundle of toy size whose base and refiner can both become int8, and pictures for it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("engines", "plugins", "export"))

from native_net import CLASSES, FRAME, LOW, unet

from crispseg.bundle import NetInfo, RefinerInfo, write_bundle
from crispseg.classes import ClassInfo
from crispseg.runtime.sinks import write_png

LAYERS = ("first", "second", "third", "logits")


def base_onnx(seed=0):
    """Four convolutions, 24x40 -> 6x10; the last gives logits."""
    rng = np.random.default_rng(seed)
    nodes, weights, x = [], [], "image"
    for name, cin, cout, stride in zip(LAYERS, (3, 16, 16, 16), (16, 16, 16, CLASSES), (2, 2, 1, 1)):
        value = rng.normal(0, 1.6 * (9 * cin) ** -0.5, (cout, cin, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(value * (4 if name == "logits" else 1), name + ".w"))
        out = "logits" if name == "logits" else name + ".y"
        nodes.append(helper.make_node("Conv", [x, name + ".w"], [out], name, pads=[1] * 4, strides=[stride] * 2))
        if name != "logits":
            nodes.append(helper.make_node("Relu", [out], [name + ".relu"], name + ".relu"))
            x = name + ".relu"
    ports = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *FRAME])]
    result = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES, *LOW])]
    graph = helper.make_graph(nodes, "base", ports, result, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_small(target, refiner=True):
    classes = tuple(ClassInfo("c%d" % i, (i, 50, 0)) for i in range(CLASSES))
    base = NetInfo("base.onnx", "toy", *FRAME, "rgb", (120.0,) * 3, (60.0,) * 3, "antialias", *LOW, "bilinear")
    files, info = {"base.onnx": base_onnx().SerializeToString()}, None
    if refiner:
        model = unet(upsample="bilinear", threshold=0.6).model()
        for node in model.graph.node:
            if node.op_type == "SparseConv2d":
                node.name = next(name for name in node.output if name).replace(".z0", "")
        files["refiner.onnx"] = model.SerializeToString()
        info = RefinerInfo("refiner.onnx", "sparserefine", 1, (8, 12), (1, 1), ("rgb",), "active", "gated", "bilinear",
                           0.6, FRAME[0] * FRAME[1])  # fmt: skip
    return write_bundle(target, name="small", height=FRAME[0], width=FRAME[1], classes=classes, base=base, refiner=info,
                        provenance={}, files=files)  # fmt: skip


def write_pictures(folder, count=34, labels=False):
    """Blocks of colours; label maps beside them in ``labels``."""
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
        write_png(folder / "images" / f"{i:03}.png", np.repeat(np.repeat(coarse, 4, 0), 4, 1))
        if labels:
            (folder / "labels").mkdir(exist_ok=True)
            ids = rng.integers(0, CLASSES, (6, 10), dtype=np.uint8)
            write_png(folder / "labels" / f"{i:03}.png", np.repeat(np.repeat(ids, 4, 0), 4, 1))
    return folder / "images"
