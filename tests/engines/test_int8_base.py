"""What each TensorRT gets of a calibrated base: one file, in the form that the version reads."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from trt_support import Context, convert, copy_bundle, libraries, pack, world  # noqa: F401  (fixtures)

sys.path.append(str(Path(__file__).parents[1] / "calibration"))
from dense_net import folder_of_frames, tiny_bundle  # noqa: E402

from crispseg.bundle import load_bundle  # noqa: E402
from crispseg.cli import main  # noqa: E402
from crispseg.engines.tensorrt import artefacts  # noqa: E402
from crispseg.engines.tensorrt.build import BuildOptions  # noqa: E402
from crispseg.errors import BundleError, UnsupportedOp  # noqa: E402


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    tiny_bundle(folder / "float")
    arguments = ["calibrate", folder / "float", folder_of_frames(folder / "images", 33, 64, 96), "--count", 32,
                 "--networks", "base", "--threads", 1, "--gate", 100, "-o", folder / "int8"]  # fmt: skip
    assert main(list(map(str, arguments))) == 0
    return load_bundle(folder / "int8")


@pytest.fixture
def given(monkeypatch):
    """The models that were handed to TensorRT."""
    models, build = [], artefacts.build_engine

    def wrapped(model, *arguments, **named):
        models.append(onnx.load_from_string(model))
        return build(model, *arguments, **named)

    monkeypatch.setattr(artefacts, "build_engine", wrapped)
    return models


@pytest.mark.parametrize("version", ["8.5.3", "8.6.1", "10.0.1", "10.13.3.9", "11.4.0.106"])
def test_one_file_serves_every_version(version, int8, given, world):  # noqa: F811
    trt, library = world(version)
    options = BuildOptions(precision="int8", workspace_mib=64)
    (row,) = artefacts.build_bundle(
        int8, options, convert, Context(), trt=trt, library=library, pack=pack, roles=["base"], force=True
    )
    old = version.startswith("8")
    assert row["precision"] == "int8"
    assert row["strongly_typed"] is not old
    (model,) = given
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    tensors = {t.name: t for t in model.graph.initializer}
    producer = {name: node.op_type for node in model.graph.node for name in node.output}
    weights = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and ".w." in node.name]
    scales = {tensors[n.input[1]].data_type for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert len(weights) == 7
    if old:  # float weights with a pair of their own, opset 17, types chosen by flags
        assert {producer[name] for name in weights} == {"QuantizeLinear"}
        assert scales == {TensorProto.FLOAT}
        assert model.opset_import[0].version == 17
    else:  # int8 weights, float16 between the pairs
        assert {tensors[name].data_type for name in weights} == {TensorProto.INT8}
        assert scales == {TensorProto.FLOAT16}
        assert model.opset_import[0].version == 19
    found = artefacts.find(int8, "base", "int8", trt, Context().info, library=library)
    assert "base.int8.onnx" in found.identity.sources


def test_fp16_starts_from_the_float_file(int8, given, world):  # noqa: F811
    trt, library = world("10.13.3.9")
    artefacts.build_bundle(int8, BuildOptions(precision="fp16", workspace_mib=64), convert, Context(), trt=trt,
                           library=library, pack=pack, roles=["base"])  # fmt: skip
    assert not any(node.op_type == "QuantizeLinear" for node in given[0].graph.node)
    kinds = {numpy_helper.to_array(t).dtype for t in given[0].graph.initializer if t.name.endswith(".w.fp16")}
    assert kinds == {np.dtype(np.float16)}


def test_float_and_foreign_calibrations_are_refused(int8, tmp_path, world):  # noqa: F811
    trt, library = world("10.13.3.9")
    options = BuildOptions(precision="int8")
    with pytest.raises(UnsupportedOp, match="run `crispseg calibrate` on it first"):
        artefacts.build_bundle(copy_bundle(tmp_path), options, convert, Context(), trt=trt, library=library, pack=pack,
                               roles=["base"])  # fmt: skip
    entry = dataclasses.replace(int8.calibration.networks["base"], sources={"base.onnx": "0" * 64})
    foreign = dataclasses.replace(int8, calibration=dataclasses.replace(int8.calibration, networks={"base": entry}))
    with pytest.raises(BundleError, match="int8 base belongs to another graph"):
        artefacts.build_bundle(foreign, options, convert, Context(), trt=trt, library=library, pack=pack,
                               roles=["base"])  # fmt: skip
