"""Fixtures of runs and of the GPU pipeline; small nets of tests/engines and op references can be imported by name."""

import sys
from pathlib import Path

import numpy as np
import pytest

for folder in ("engines", "plugins", "export"):
    path = str(Path(__file__).parents[1] / folder)
    if path not in sys.path:
        sys.path.append(path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle whose networks name the colours of :func:`toy.colour_blocks`."""
    import toy

    return toy.write_toy(tmp_path_factory.mktemp("b") / "toy")


@pytest.fixture
def clip(tmp_path):
    """A short video of such pictures."""
    import toy

    return toy.write_clip(tmp_path / "clip.mp4")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, emulated_driver, kernel_image):
    """order -> bundle with kernels in its cache."""
    import gpu_toy

    from crispseg.cli_build import to_precision
    from crispseg.engines import cuda_base, nvrtc

    folder = tmp_path_factory.mktemp("gpu")
    sources, patch = nvrtc.kernel_sources(), pytest.MonkeyPatch()
    patch.setattr(nvrtc, "kernel_sources", lambda: sources)  # one key, even if somebody edits a kernel meanwhile
    written = {order: gpu_toy.write(folder / order, order=order) for order in ("rgb", "bgr")}
    for bundle in written.values():
        gpu_toy.store_kernels(bundle, kernel_image)
    for role in ("base", "baseline"):
        cuda_base.build(written["rgb"], role, to_precision)
    yield written
    patch.undo()


@pytest.fixture
def on_host(monkeypatch, emulated):
    """The base in ONNX Runtime's CPU provider, on emulated device memory: it runs at once, so the device must too."""
    from crispseg.engines import ort_cuda

    emulated.eager(True)
    load = ort_cuda.load
    monkeypatch.setattr(ort_cuda, "load", lambda path, context, stream: load(
        path, context, stream, provider="CPUExecutionProvider"))  # fmt: skip


@pytest.fixture
def copied(monkeypatch, emulated):
    """A base that copies fixed logits on the device; it can be captured, and the device runs as late as it may."""
    from gpu_toy import LOW, CopyBase
    from native_net import CLASSES

    from crispseg.runtime import gpu_open

    logits = np.random.default_rng(5).normal(0, 4.0, (1, CLASSES, *LOW)).astype(np.float32)
    monkeypatch.setattr(gpu_open, "open_base", lambda bundle, net, spec, context, stream: CopyBase(context, logits))
    return logits
