"""The CUDA engine on the emulated driver. Lets the tests of this folder import the op references of tests/plugins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "plugins", Path(__file__).parents[1] / "export"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.fixture(scope="module")
def kernels(emulated_driver, kernel_image):
    from crispseg.engines import cuda
    from crispseg.engines.cuda_kernels import Kernels

    loaded = Kernels(cuda.open_device(0), kernel_image)
    yield loaded
    loaded.close()


@pytest.fixture
def opened(kernels, emulated, tmp_path):
    """Opens a net or a model on the kernels; closed at the end of the test."""
    import onnx
    from native_net import Net

    from crispseg.engines import cuda_refiner
    from crispseg.engines.spec import EngineSpec

    engines = []

    def load(net, precision="fp32", logits_type="fp32", **spec):
        path = tmp_path / "refiner.onnx"
        onnx.save(net.model() if isinstance(net, Net) else net, str(path))
        spec = EngineSpec("cuda", precision=precision, **spec)
        engines.append(cuda_refiner.load(path, kernels, spec, logits_type))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()
