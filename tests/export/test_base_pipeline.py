"""A bundle scores in the pipeline what its base scores in PyTorch: resizing, normalisation, channels, upsampling."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch.nn.functional as F  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_bases  # noqa: E402
import fill_mmseg  # noqa: E402

from crispseg.classes import CAMVID, CITYSCAPES  # noqa: E402
from crispseg.export.project import export_bundle  # noqa: E402
from crispseg.runtime.accuracy import Tally  # noqa: E402
from crispseg.runtime.pipeline import open_pipeline  # noqa: E402

torch.set_num_threads(1)

HEIGHT, WIDTH = 90, 150  # no stride divides these sides, nor their halves


def frames(count=3):
    rng = np.random.default_rng(5)
    for _ in range(count):
        coarse = rng.integers(0, 256, (9, 15, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.BICUBIC)).astype(int)
        yield np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8), rng


def labels_of(net, frame, size, mean, std, corners):
    """As the authors evaluate: resize, normalise, network, enlarge the logits, take the best class."""
    small = np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.BILINEAR)).astype(np.float32)
    x = torch.from_numpy((small - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]
    with torch.no_grad():
        assert net(x).shape[2:] == x.shape[2:]
        full = F.interpolate(net.forward_logits(x), (HEIGHT, WIDTH), mode="bilinear", align_corners=corners)
    return full.argmax(1)[0].numpy().astype(np.uint8)


@pytest.mark.parametrize(
    ("arch", "corners", "scale", "backend"),
    [
        ("sfnet_dfv1", True, 0.5, "onnxruntime"),
        ("sfnet_lite_stdc1", True, 0.5, "onnxruntime"),
        ("sanet_c11", False, 0.5, "onnxruntime"),
        ("sanet_c11", False, 1.0, "native"),
        ("sanet_tiny_c11", True, 0.5, "native"),
    ],
)
def test_miou_of_the_pipeline_is_that_of_torch(tmp_path, arch, corners, scale, backend):
    net, info, state = fill_bases.network(arch)
    classes = CAMVID if arch.endswith("c11") else CITYSCAPES
    torch.save({"state_dict": {"module." + k: v for k, v in state.items()}}, tmp_path / "w.pth")
    made = bundle(tmp_path, info, scale, classes)
    size = (round(HEIGHT * scale), round(WIDTH * scale))
    normal = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    compare(made, classes, backend, lambda frame: labels_of(net, frame, size, *normal, corners))


def bundle(tmp_path, info, scale, classes, **options):
    return export_bundle(
        info.name,
        tmp_path / "b",
        weights=tmp_path / "w.pth",
        refiner=None,
        height=HEIGHT,
        width=WIDTH,
        scale=scale,
        classes=classes,
        **options,
    )


def compare(made, classes, backend, reference):
    """mIoU of the pipeline and of ``reference`` (frame -> labels) on the same frames."""
    pipeline = open_pipeline(made, backend=backend, threads=1)
    names, count = [c.name for c in classes], len(classes)
    torch_tally, tally, same = Tally(count), Tally(count), []
    for frame, rng in frames():
        wanted = reference(frame)
        found = pipeline.run(frame).labels
        truth = np.where(rng.random(wanted.shape) < 0.3, rng.integers(0, count, wanted.shape), wanted).astype(np.uint8)
        torch_tally.add(wanted, truth)
        tally.add(found, truth)
        same.append((found == wanted).mean())
    a, b = torch_tally.result(names), tally.result(names)
    assert np.mean(same) > 0.999
    assert abs(a["miou"] - b["miou"]) <= 0.05
    assert a["miou"] > 5


def spread_classes(net):
    """Move the classifier's bias until every class has the same mean logit: else one class takes nearly all pixels."""
    bias = net.decode_head.conv_seg.bias
    with torch.no_grad():
        for frame, _ in frames(1):
            x = (torch.from_numpy(frame).float() - 116) / 57
            bias -= net.forward_logits(x.permute(2, 0, 1)[None]).mean((0, 2, 3))


def mmseg_labels(net, frame, size, pad_to):
    """As MMSegmentation tests: normalise, pad with zeros, logits to the padded size, crop, logits to the frame."""
    small = np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.BILINEAR)).astype(np.float32)
    x = (small - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    below, right = (-side % pad_to for side in size)
    x = np.pad(x, ((0, below), (0, right), (0, 0)))
    with torch.no_grad():
        logits = net(torch.from_numpy(x).permute(2, 0, 1)[None])  # its forward ends at the size of its input
    logits = logits[:, :, : size[0], : size[1]]
    full = F.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    return full.argmax(1)[0].numpy().astype(np.uint8)


@pytest.mark.parametrize(
    ("arch", "scale", "backend", "logits"),
    [
        # 45x75 is padded to 64x96
        ("segnext_l", 0.5, "onnxruntime", "native"),
        ("fcn_hr48", 1.0, "native", "native"),
        ("segformer_b5", 0.5, "onnxruntime", "input"),
    ],
)
def test_miou_of_the_pipeline_is_that_of_mmsegmentation(tmp_path, monkeypatch, arch, scale, backend, logits):
    net, info, _ = fill_mmseg.shallow(arch, monkeypatch)
    spread_classes(net)
    torch.save({"meta": {}, "state_dict": net.state_dict()}, tmp_path / "w.pth")
    made = bundle(tmp_path, info, scale, CITYSCAPES, logits=logits)
    size = (round(HEIGHT * scale), round(WIDTH * scale))
    pad_to = {"segnext_l": 32}.get(arch, 1)
    compare(made, CITYSCAPES, backend, lambda frame: mmseg_labels(net, frame, size, pad_to))
    notes = made.provenance["base"]
    assert notes["parity"]["max_error_std"] < 2e-4
    if pad_to == 1:
        assert "padding" not in notes
        return
    frame, _ = next(frames())
    assert (mmseg_labels(net, frame, size, 1) == mmseg_labels(net, frame, size, pad_to)).mean() < 0.99  # it matters
    assert notes["padding"].startswith(
        "in the graph: zeros right and bottom of the normalised image to multiples of 32"
    )
    assert (made.base.logits_height, made.base.logits_width) == size
