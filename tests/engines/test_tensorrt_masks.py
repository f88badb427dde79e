"""Building and opening SegRefiner's engine on a module made from the recorded API of each release."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from fake_tensorrt import make
from onnx import TensorProto, helper
from trt_support import Context, convert

from crispseg.bundle_masks import CrmInfo, SegRefinerInfo, write_mask_bundle
from crispseg.engines.tensorrt.build import BuildOptions
from crispseg.engines.tensorrt.masks_crm import build_crm_engines
from crispseg.engines.tensorrt.masks_segrefiner import build_segrefiner_engine, load_segrefiner_engine
from crispseg.errors import EnvironmentMismatch, InputError

INFO = SegRefinerInfo("unet.onnx", "instance", 32, (0.5, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), batch=8)


@pytest.fixture
def bundle(tmp_path):
    """A network with the U-Net's ports: the mean of the channels plus the step."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], "mean", axes=[1]),
        helper.make_node("Cast", ["t"], ["step"], "step", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["step", "axes"], ["steps"], "steps"),
        helper.make_node("Add", ["mean", "steps"], ["logits"], "logits"),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, 32, 32]),
        helper.make_tensor_value_info("t", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1, 32, 32]),
    ]
    graph = helper.make_graph(nodes, "unet", ports[:2], ports[2:], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return write_mask_bundle(tmp_path / "b", name="toy", refiner=INFO, files={"unet.onnx": model.SerializeToString()})


@pytest.mark.parametrize("version", ["8.6.1", "10.13.3.9", "11.4.0.106"])
def test_build_keep_open_run(bundle, version):
    trt, context = make(version), Context()
    options = BuildOptions(precision="fp16")
    with pytest.raises(EnvironmentMismatch, match="crispseg build .* --precision fp16"):
        load_segrefiner_engine(bundle, context, trt=trt)
    rows = [build_segrefiner_engine(bundle, options, convert, context, trt=trt)[0] for _ in range(2)]
    assert [(row["part"], row["precision"], row["engine"]) for row in rows] == [
        ("unet", "fp16", "built"),
        ("unet", "fp16", "kept"),
    ]
    assert "IOptimizationProfile.set_shape" in trt.calls
    engine = load_segrefiner_engine(bundle, context, trt=trt)
    for count in (1, 8, 3):  # the memory follows the batch
        feeds = {"image": np.zeros((count, 4, 32, 32), np.float32), "t": np.zeros(count, np.int64)}
        assert engine.run(feeds)["logits"].shape == (count, 1, 32, 32)
    with pytest.raises(EnvironmentMismatch, match="fp32"):
        load_segrefiner_engine(bundle, context, precision="fp32", trt=trt)
    engine.close()


def test_what_has_no_engine_is_refused(bundle, tmp_path):
    trt = make("10.13.3.9")
    with pytest.raises(InputError, match="fp32 or fp16"):
        build_segrefiner_engine(bundle, BuildOptions(precision="int8"), convert, Context(), trt=trt)
    with pytest.raises(InputError, match="expected CRM, found SegRefiner"):
        build_crm_engines(bundle, BuildOptions(), {}, convert, Context(), trt=trt)
    colours = (1.0, 1.0, 1.0)
    crm = CrmInfo("a.onnx", "b.onnx", "c.onnx", (64, 128), (1.0,), 32, colours, colours)
    other = write_mask_bundle(tmp_path / "c", name="crm", refiner=crm, files={n: b"x" for n in crm.networks})
    with pytest.raises(InputError, match="found CRM"):
        build_segrefiner_engine(other, BuildOptions(), convert, Context(), trt=trt)
    with pytest.raises(InputError, match="fp32 or fp16"):
        build_crm_engines(other, BuildOptions(precision="int8"), {}, convert, Context(), trt=trt)
    with pytest.raises(InputError, match="leave it out"):
        build_crm_engines(other, BuildOptions(profiles={"": ((1,), (1,), (1,))}), {}, convert, Context(), trt=trt)
