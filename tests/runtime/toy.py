"""A toy bundle: the base maps colours to classes with one strided convolution; and a fake refiner engine."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from crispseg.bundle import NetInfo, RefinerInfo, write_bundle
from crispseg.classes import ClassInfo
from crispseg.errors import EnvironmentMismatch

# Class c lights up where its colour channel is the brightest.
CLASSES = (ClassInfo("red", (250, 0, 0)), ClassInfo("green", (0, 250, 0)), ClassInfo("blue", (0, 0, 250)))
STRIDE = 4


def native_missing():
    """Whether the native library is not there."""
    try:
        from crispseg.plugins import loader

        loader.load()
    except EnvironmentMismatch:
        return True
    return False


def dense_onnx(height, width, stride=STRIDE, swap=False):
    weight = np.zeros((3, 3, stride, stride), np.float32)
    for c in range(3):
        weight[c, 2 - c if swap else c] = 4.0 / stride**2
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, height, width])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, height // stride, width // stride])
    node = helper.make_node("Conv", ["image", "w"], ["logits"], strides=[stride, stride])
    graph = helper.make_graph([node], "toy", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def net(file, height, width, order="rgb", **changes):
    values = {
        "file": file, "architecture": "toy", "height": height, "width": width, "channel_order": order,
        "mean": (100.0, 110.0, 120.0), "std": (50.0, 55.0, 60.0), "resize": "antialias",
        "logits_height": height // STRIDE, "logits_width": width // STRIDE, "upsample": "nearest",
        "random_weights": False,
    }  # fmt: skip
    values.update(changes)
    return NetInfo(**values)


def write_toy(target, height=48, width=64, refiner=False, order="rgb", **changes):
    files = {
        "base.onnx": dense_onnx(height // 2, width // 2, swap=order == "bgr"),
        "baseline.onnx": dense_onnx(height, width, swap=order == "bgr"),
    }
    info = None
    if refiner:
        info = RefinerInfo("refiner.onnx", "sparserefine", 1, (8,), (1,), ("rgb",), "active", "gated", "nearest", 0.3,
                           height * width)  # fmt: skip
        files["refiner.onnx"] = b"not read by the fake engine"
    return write_bundle(
        target, name="toy", height=height, width=width, classes=CLASSES,
        base=net("base.onnx", height // 2, width // 2, order, **changes),
        baseline=net("baseline.onnx", height, width, order), refiner=info, provenance={}, files=files,
    )  # fmt: skip


class FakeRefiner:
    """Refines the top left 2 x 3 pixels to class 2; reuses its buffers as the native engine does."""

    def __init__(self, height, width):
        self.labels = np.zeros((height, width), np.uint8)
        self.confidence = np.full((height, width), 200, np.uint8)
        self.stage_times = {"select": 1.0, "maps": 2.0, "conv": 3.0}
        self.inputs = {"image": (np.uint8, [height, width, 3]),
                       "logits": (np.float32, [1, 3, height // 2 // STRIDE, width // 2 // STRIDE])}  # fmt: skip
        self.outputs = {name: (None, []) for name in ("labels", "confidence", "coords", "count", "found")}
        self.seen = []
        self.closed = False

    def run(self, inputs, outputs=None):
        self.seen.append((inputs["image"].copy(), sorted(outputs)))
        self.labels[:] = 0
        self.labels[:2, :3] = 2
        coords = np.array([(y, x) for y in range(2) for x in range(3)], np.int32)
        values = {"labels": self.labels, "confidence": self.confidence, "coords": coords,
                  "count": np.array([6], np.int32), "found": np.array([9], np.int32)}  # fmt: skip
        return {name: values[name] for name in outputs}

    def describe(self):
        return {"backend": "fake"}

    def close(self):
        self.closed = True


def colour_blocks(height, width):
    """Thirds of red, green and blue, left to right, and the labels that belong to it."""
    image = np.full((height, width, 3), 10, np.uint8)
    labels = np.minimum(np.arange(width) * 3 // width, 2)
    for c in range(3):
        image[:, labels == c, c] = 240
    return image, np.broadcast_to(labels.astype(np.uint8), (height, width))


def write_clip(path):
    """Twelve frames of moving colour blocks, 48 x 64; returns the path."""
    from crispseg.runtime.sinks import VideoWriter

    writer = VideoWriter(path, Fraction(30000, 1001))
    image, _ = colour_blocks(48, 64)
    for i in range(12):
        writer.write(np.roll(image, 3 * i, axis=1))
    writer.close()
    return path


class Slow:
    """A pipeline that takes its time, and may do something at frame ``at``."""

    def __init__(self, inner, seconds=0.0, at=None, action=None):
        self.inner, self.seconds, self.at, self.action, self.done = inner, seconds, at, action, 0

    def run(self, frame, want=("labels",)):
        time.sleep(self.seconds)
        if self.done == self.at:
            self.action()
        self.done += 1
        return self.inner.run(frame, want)

    def describe(self):
        return {}


def threads_left():
    """Names of threads of a run that still live after a while."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        left = [t.name for t in threading.enumerate() if t.name.startswith("crispseg-")]
        if not left:
            return left
        time.sleep(0.05)
    return left
