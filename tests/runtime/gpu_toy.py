"""A small bundle with a real refiner, and bases that stand in for a GPU's on emulated device memory."""

from __future__ import annotations

import numpy as np
from int8_net import int8_unet
from native_net import CLASSES, FRAME, LOW, unet
from onnx import TensorProto, helper, numpy_helper

from crispseg.bundle import NetInfo, RefinerInfo, write_bundle
from crispseg.bundle_calibration import Calibration, NetCalibration, preprocessing_hash
from crispseg.classes import ClassInfo
from crispseg.engines import cache, cuda, cuda_kernels

INPUT = (FRAME[0] // 2, FRAME[1] // 2)


def base_onnx(height, width, rows, columns):
    """One strided convolution; about a third of the pixels is uncertain."""
    rng = np.random.default_rng(3)
    step = height // rows
    weight = rng.normal(0, 2.5, (CLASSES, 3, step, step)).astype(np.float32)
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, height, width])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES, rows, columns])
    node = helper.make_node("Conv", ["image", "w"], ["logits"], strides=[step, step])
    graph = helper.make_graph([node], "toy", [x], [y], [numpy_helper.from_array(weight, "w")])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def net(file, height, width, order):
    return NetInfo(
        file=file, architecture="toy", height=height, width=width, channel_order=order, mean=(100.0, 110.0, 120.0),
        std=(50.0, 55.0, 60.0), resize="antialias", logits_height=LOW[0], logits_width=LOW[1], upsample="bilinear",
        random_weights=False,
    )  # fmt: skip


def write(target, refiner=True, order="rgb"):
    size, capacity = FRAME[0] * FRAME[1], 10000
    files = {
        "base.onnx": base_onnx(*INPUT, *LOW),
        "baseline.onnx": base_onnx(*FRAME, *LOW),
    }
    info = None
    if refiner:
        info = RefinerInfo("refiner.onnx", "sparserefine", 1, (8,), (1,), ("rgb",), "active", "gated", "bilinear", 0.5,
                           min(capacity, size))  # fmt: skip
        files["refiner.onnx"] = unet().model().SerializeToString()
    classes = tuple(ClassInfo("class%d" % i, (40 * i, 200 - 30 * i, 10 * i)) for i in range(CLASSES))
    return write_bundle(
        target, name="toy", height=FRAME[0], width=FRAME[1], classes=classes, base=net("base.onnx", *INPUT, order),
        baseline=net("baseline.onnx", *FRAME, order), refiner=info, provenance={}, files=files,
    )  # fmt: skip


def calibrated(bundle, target):
    """The bundle with an int8 form of its refiner."""
    refiner = "refiner.int8.onnx"
    record = NetCalibration(
        refiner, {"refiner.onnx": bundle.files["refiner.onnx"].sha256}, "minmax", "0" * 64, 2,
        preprocessing_hash(bundle, "refiner"), 0, False, (), 0.9,
    )  # fmt: skip
    files = {name: bundle.file(name) for name in bundle.files}
    files[refiner] = int8_unet().SerializeToString()
    return write_bundle(
        target, name=bundle.name, height=bundle.height, width=bundle.width, classes=bundle.classes, base=bundle.base,
        baseline=bundle.baseline, refiner=bundle.refiner, files=files, calibration=Calibration({"refiner": record}),
    )  # fmt: skip


def store_kernels(bundle, image):
    """Put the kernel image where `crispseg build --backend cuda` puts it."""
    context = cuda.open_device(0)
    return cache.store(bundle.path, cuda_kernels.identity(context), {cuda_kernels.IMAGE: image})


class CopyBase:
    """Gives fixed logits by a copy on the device, in stream order; may be captured."""

    input_type = output_type = "fp32"
    capturable = True

    def __init__(self, context, logits):
        self.inputs = {"image": (np.float32, [1, 3, *INPUT])}
        self.outputs = {"logits": (np.float32, list(logits.shape))}
        self.buffer = cuda.upload_now(context, logits)

    def enqueue(self, stream, input_address, output_address):
        stream.copy(output_address, self.buffer.address, self.buffer.nbytes)

    def describe(self):
        return {"backend": "copy"}

    def close(self):
        self.buffer.close()


def picture(seed, height, width):
    """Smooth colours, so that resizing has something to do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 6, 3)).astype(np.float32)
    rows = np.linspace(0, 3, height)[:, None, None]
    columns = np.linspace(0, 5, width)[None, :, None]
    low_y, low_x = np.minimum(rows.astype(int), 2), np.minimum(columns.astype(int), 4)
    fy, fx = rows - low_y, columns - low_x
    y, x = low_y[..., 0], low_x[..., 0]
    mixed = (coarse[y, x] * (1 - fx) + coarse[y, x + 1] * fx) * (1 - fy)
    mixed += (coarse[y + 1, x] * (1 - fx) + coarse[y + 1, x + 1] * fx) * fy
    return np.ascontiguousarray(np.clip(mixed + rng.normal(0, 10, mixed.shape), 0, 255).astype(np.uint8))
