"""Int8 refiners for the TensorRT plugins: taken by the plugins' own core, computed by the kernels (emulated driver)."""

from __future__ import annotations

import numpy as np
import pytest
from int8_net import int8_unet
from native_net import CLASSES, FRAME, frame, interpret
from onnx import helper
from stripped import StrippedEngine
from test_tensorrt_strip import core, library, real_pack, through_core  # noqa: F401  (fixtures)

from crispseg.engines import cuda
from crispseg.engines.tensorrt.rows import INT8
from crispseg.engines.tensorrt.strip import strip_refiner

CASES = {"all": ((), False), "some": (("low2", "dec", "mix"), False), "first and last": ((), True)}


def convolutions(model):
    found = [node for node in model.graph.node if node.op_type == "SparseConv2d"]
    return {node.name: {a.name: helper.get_attribute_value(a) for a in node.attribute} for node in found}


def run(model, kernels, feeds):
    """Labels and active pixels of a stripped model."""
    context = kernels.context
    engine, stream = StrippedEngine(model, context, kernels), context.stream()
    buffers = {name: cuda.upload_now(context, feeds[name]) for name in ("image", "logits")}
    pixels = FRAME[0] * FRAME[1]
    sizes = {"labels": pixels, "confidence": pixels, "coords": 8 * pixels, "count": 4, "found": 4}
    buffers.update((name, context.alloc(-(-size // 4) * 4)) for name, size in sizes.items())
    engine.enqueue(stream.handle, {name: buffer.address for name, buffer in buffers.items()})
    labels, count = np.empty(FRAME, np.uint8), np.empty(1, np.int32)
    stream.download(labels, buffers["labels"].address)
    stream.download(count, buffers["count"].address)
    stream.synchronize()
    engine.close()
    for buffer in buffers.values():
        buffer.close()
    return labels, int(count[0])


@pytest.mark.parametrize("case", CASES)
def test_the_plugins_take_it_and_the_kernels_agree_with_the_definition(core, real_pack, kernels, emulated, case):  # noqa: F811
    model = int8_unet(*CASES[case])
    for precision, agreement in (("fp32", 0.999), ("int8", 0.98)):
        made = strip_refiner(model, precision, real_pack).model
        known = through_core(core, made)
        assert known["labels"] == (2, (FRAME[0] * FRAME[1] // 4,))
        for seed in (1, 4):
            feeds = frame(seed)
            exact = interpret(model, feeds)
            labels, count = run(made, kernels, feeds)
            assert count == exact["count"][0]
            assert (labels == exact["labels"]).mean() >= agreement, (precision, seed)


def test_types_widths_and_scales(real_pack):  # noqa: F811
    model = int8_unet()
    scales = {node.name: a.f for node in model.graph.node for a in node.attribute if a.name == "x_scale"}
    convs = convolutions(strip_refiner(model, "int8", real_pack).model)
    assert set(convs) == {node.name for node in model.graph.node if node.op_type == "SparseConv2d"}, "no copies"
    for name, a in convs.items():
        assert (a["x_type"] == INT8) == (name in scales), name
        assert bool(a["inputs"] >> 10 & 1) == (name in scales), "dequant"
        types = [a[role + "_type"] for bit, role in enumerate(("y", "z1", "z2")) if a["outputs"] >> bit & 1]
        assert a["cout"] % (32 if INT8 in types else 1) == 0
        assert a["residual_type"] != INT8
        assert "x_scale" not in a
    assert convs["enc"]["z1_quant"] == pytest.approx(scales["low"])
    assert (convs["low"]["y_type"], convs["low"]["z1_type"]) == (1, INT8), "a residual stays fp16, as wide as int8"
    assert convs["low"]["cout"] == convs["low2"]["cout"] == 32
    assert (convs["yo"]["x_type"], convs["yo"]["y_type"], convs["yo"]["cout"]) == (1, 0, CLASSES)


def test_float_rows_are_copied_by_an_identity_convolution(real_pack):  # noqa: F811
    made = strip_refiner(int8_unet(*CASES["some"]), "int8", real_pack).model
    copies = {name: a for name, a in convolutions(made).items() if ".int8." in name}
    assert [name.split(".int8")[0] for name in copies] == ["stem.z0", "cat", "wide", "twice"]
    for a in copies.values():
        assert (a["taps"], a["x_type"], a["y_type"]) == (1, 1, INT8)
        assert a["y_quant"] > 0
