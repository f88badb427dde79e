"""A small dense network with every structure that placement knows, and frames for it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def dense_net(path, seed=0, height=32, width=48):
    """Stem, max pool, two residual blocks (one with a shortcut convolution), resize and concat, two-layer head.

    Input image [1,3,h,w], output logits [1,5,h/2,w/2]. Weights are random; the file is written to ``path``.
    """
    random = np.random.default_rng(seed)
    tensors, nodes = [], []

    def conv(name, x, cin, cout, side=3, stride=1):
        weight = random.normal(0, (2 / (cin * side * side)) ** 0.5, (cout, cin, side, side)).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, name + ".w"))
        tensors.append(numpy_helper.from_array(random.normal(0, 0.1, cout).astype(np.float32), name + ".b"))
        nodes.append(
            helper.make_node(
                "Conv", [x, name + ".w", name + ".b"], [name], name, pads=[side // 2] * 4, strides=[stride] * 2
            )
        )
        return name

    def op(kind, inputs, name, **attributes):
        nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    x = op("Relu", [conv("stem", "image", 3, 16)], "stem.relu")
    x = op("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    y = op("Relu", [conv("a1", x, 16, 16)], "a1.relu")
    x = op("Relu", [op("Add", [conv("a2", y, 16, 16), x], "a.add")], "a.relu")
    y = op("Relu", [conv("b1", x, 16, 32, stride=2)], "b1.relu")
    y = conv("b2", y, 32, 32)
    z = op("Relu", [op("Add", [y, conv("b.short", x, 16, 32, 1, 2)], "b.add")], "b.relu")
    tensors.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    up = op("Resize", [z, "", "scales"], "up", mode="linear", coordinate_transformation_mode="half_pixel")
    x = op("Concat", [x, up], "joined", axis=1)
    x = op("Relu", [conv("mix", x, 48, 24)], "mix.relu")
    nodes.append(helper.make_node("Identity", [conv("head", x, 24, 5, 1)], ["logits"], "out"))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "dense",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, height, width])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5, height // 2, width // 2])],
            tensors,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def tiny_bundle(target):
    """A bundle of that network at 32x48 for frames of 64x96, with a baseline and no refiner."""
    from crispseg.bundle import NetInfo, write_bundle
    from crispseg.classes import ClassInfo

    target.parent.mkdir(parents=True, exist_ok=True)
    nets, files = [], {}
    for role, height, width in (("base", 32, 48), ("baseline", 64, 96)):
        files[role + ".onnx"] = dense_net(target.parent / (role + ".onnx"), height=height, width=width)
        nets.append(NetInfo(role + ".onnx", "tiny", height, width, "rgb", (120.0, 110.0, 100.0), (60.0, 60.0, 60.0),
                            "antialias", height // 2, width // 2, "bilinear"))  # fmt: skip
    return write_bundle(
        target, name="tiny", height=64, width=96, base=nets[0], baseline=nets[1], files=files,
        classes=[ClassInfo("class %d" % i, (i, 0, 0)) for i in range(5)],
    )  # fmt: skip


def inputs(count=4, seed=1):
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, (1, 3, 32, 48)).astype(np.float32) for _ in range(count)]


def run(model, value, optimise=True):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": value})[0]


def folder_of_frames(folder, count, height, width, seed=0):
    """Windows of one rendered street scene, as PNG files of random names' order; all differ."""
    from PIL import Image

    from crispseg.scenes import render

    folder.mkdir(parents=True)
    image, _ = render(seed, 0, 2 * height, 2 * width)
    random = np.random.default_rng(seed)
    for index in range(count):
        top, left = random.integers(0, height), random.integers(0, width)
        Image.fromarray(image[top : top + height, left : left + width]).save(folder / f"{index:03d}.png")
    return folder
