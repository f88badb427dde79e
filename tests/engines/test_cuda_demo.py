"""The shipped refiner on the CUDA kernels (emulated driver) against the native engine: trained weights, five levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crispseg.engines import cuda, cuda_refiner, native
from crispseg.engines.cuda_kernels import Kernels
from crispseg.engines.spec import EngineSpec
from crispseg.scenes import render

REFINER = Path(__file__).parents[2] / "demo" / "bundle" / "refiner.onnx"
LEAST = {"fp32": 0.9999, "fp16": 0.995}


@pytest.fixture(scope="module")
def feeds():
    """A street scene; of its low-resolution pixels a window of 3 x 5 is uncertain, the rest is sure of one class."""
    image = render(0, 0, 360, 480)[0]
    logits = np.random.default_rng(0).normal(0, 1.5, (1, 11, 23, 30)).astype(np.float32)
    logits[0, 3] += 30
    logits[0, 3, 10:13, 12:17] -= 30
    return {"image": image, "logits": logits}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_labels_agree_with_the_native_engine(precision, feeds, emulated, kernel_image):
    with native.load(REFINER, EngineSpec(threads=1)) as engine:
        exact = engine.run(feeds)
    kernels = Kernels(cuda.open_device(0), kernel_image)
    with cuda_refiner.load(REFINER, kernels, EngineSpec("cuda", precision=precision)) as engine:
        found = engine.run(feeds)
    kernels.close()
    assert 1000 < exact["count"][0] < 8000
    assert (found["count"][0], found["found"][0]) == (exact["count"][0], exact["found"][0])
    assert (found["coords"] == exact["coords"]).all()
    at = tuple(exact["coords"].T)
    assert (found["labels"][at] == exact["labels"][at]).mean() >= LEAST[precision]
    outside = np.ones(exact["labels"].shape, bool)
    outside[at] = False
    assert (found["labels"] == exact["labels"])[outside].all()
    assert len(np.unique(exact["labels"][at])) > 3
