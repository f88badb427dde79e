"""The exported refiner op by op: native engine against the portable bodies in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import golden
import native_cases
import onnx
import single

from crispseg.engines.spec import EngineSpec
from crispseg.errors import EnvironmentMismatch
from crispseg.export.compare import Hop, expose, tensors_of
from crispseg.export.refiner import export_refiner


@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "bilinear_corners"])
@pytest.mark.parametrize("weights", ["float32", "float16"])
@pytest.mark.parametrize("capacity", [None, 100])
@pytest.mark.parametrize(
    "config", [{}, {"features": ("rgb", "xy", "p", "p>0.5"), "ensembler": "entropy", "channel_order": "rgb"}]
)
def test_every_op_agrees(upsample, weights, capacity, config, tmp_path):
    native_cases.isas()  # finds the library of a development build
    native = pytest.importorskip("crispseg.engines.native")
    module = golden.network(upsample=upsample, threshold=1.2, **config)
    feeds = golden.scene(height=45, width=67)
    shape = feeds["logits"].shape[1:]
    model = export_refiner(module, height=45, width=67, logits_shape=shape, weights=weights, capacity=capacity)
    order = tensors_of(model)
    probed = expose(model, order)
    onnx.save(probed, tmp_path / "refiner.onnx")
    try:
        engine = native.load(tmp_path / "refiner.onnx", EngineSpec("native", threads=1))
    except EnvironmentMismatch as error:
        pytest.skip(str(error))
    names = [made.tensor for made in order]
    found = engine.run(feeds, names)
    wanted = dict(zip(names, single.session(probed).run(names, feeds)))
    assert 0 < wanted["count"][0] <= (capacity or 45 * 67)
    hop = Hop("refiner", "onnxruntime -> native", 2e-5)
    hop.tensors(order, found, wanted)
    hop.classes(found["labels"], wanted["labels"])
    hop.coords(found["coords"], wanted["coords"])
    assert hop.passed, hop.row()
    assert hop.agreement == 1
    assert np.abs(found["confidence"].astype(int) - wanted["confidence"]).max() <= 1
