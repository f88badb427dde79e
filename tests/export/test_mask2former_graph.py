"""Mask2Former as a graph: what the exporter makes of each of its layers, and its bundle."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import torch.nn.functional as F  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_mmseg  # noqa: E402

from crispseg.errors import CheckpointError  # noqa: E402
from crispseg.export import dense  # noqa: E402
from crispseg.export.networks import base_network  # noqa: E402
from crispseg.export.passes.fp16 import to_fp16  # noqa: E402
from crispseg.export.project import export_bundle  # noqa: E402
from crispseg.export.sources import tensorrt_gaps  # noqa: E402
from crispseg.models.bases import build_base, mask2former, mask2former_pixels, mask2former_queries  # noqa: E402
from crispseg.runtime.pipeline import open_pipeline  # noqa: E402

torch.set_num_threads(1)

NAME, ARCH = "mask2former-swin-t", "mask2former_swin_t"
OPERATORS = {
    *("Conv", "Gemm", "MatMul", "Relu", "Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Erf", "Exp", "Log", "Reciprocal"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "Softmax", "InstanceNormalization", "GridSample", "Resize", "Clip"),
    *("Reshape", "Transpose", "Slice", "Split", "Concat", "Gather", "Unsqueeze", "Pad", "Less", "Where"),
}


@pytest.fixture(scope="module")
def built():
    """A base of little depth with the golden weights of the layers that are left; bases are built so meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask2former, "SWIN_T", (96, (1, 1, 2, 1), 3, 7))
        patch.setattr(mask2former_pixels, "LAYERS", 1)
        patch.setattr(mask2former_queries, "LAYERS", 3)
        net = build_base(NAME, 19).eval()
        state = {key: torch.from_numpy(value) for key, value in fill_mmseg.fill(ARCH, net.state_dict()).items()}
        net.load_state_dict(state)
        spread(net)
        yield net


def spread(net):
    """Masks about 0 and four times as large: else one class takes nearly all pixels."""
    head = net.decode_head.pixel_decoder
    with torch.no_grad():
        fine, _ = head(net.backbone(torch.from_numpy(fill_mmseg.image(72, 104))))
        head.mask_feature.weight *= 4
        head.mask_feature.bias.copy_(-head.mask_feature.weight.flatten(1) @ fine[0].mean((1, 2)))


@pytest.fixture(scope="module")
def made(built, tmp_path_factory):
    """Its bundle for frames of 90x150: the base sees 45x75, and 64x96 inside."""
    folder = tmp_path_factory.mktemp("mask2former")
    torch.save({"meta": {}, "state_dict": built.state_dict()}, folder / "w.pth")
    return export_bundle(NAME, folder / "b", weights=folder / "w.pth", refiner=None, height=90, width=150, scale=0.5)


@pytest.fixture(scope="module")
def graph(made):
    return onnx.load(made.path / "base.onnx")


@pytest.fixture(scope="module")
def frame():
    coarse = np.random.default_rng(5).integers(0, 256, (9, 15, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((150, 90), Image.BICUBIC))


@pytest.fixture(scope="module")
def image(frame):
    """The frame as the base sees it: [1,3,45,75]."""
    small = np.asarray(Image.fromarray(frame).resize((75, 45), Image.BILINEAR)).astype(np.float32)
    x = (small - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    return torch.from_numpy(x).permute(2, 0, 1)[None].contiguous()


@pytest.fixture(scope="module")
def scores(built, image):
    """Class scores of torch for the image, which is padded and cut again here."""
    with torch.no_grad():
        return built.class_scores(F.pad(image, (0, 21, 0, 19)))[:, :, :45, :75]


def run(model, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    source = dense.to_bytes(model) if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, {"image": x})[0]


def nodes(model, kind):
    return [n for n in model.graph.node if n.op_type == kind]


def test_graph(graph, image, scores):
    assert {n.op_type for n in graph.graph.node} <= OPERATORS
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
    assert tensorrt_gaps(graph) == {}
    wanted = torch.log(scores).numpy()
    found = run(graph, image.numpy())
    assert found.shape == (1, 19, 45, 75)
    assert np.abs(found - wanted).max() < 5e-5 * wanted.std()


def test_sampling_by_names_and_ranks_before_opset_20(graph):
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in onnx.shape_inference.infer_shapes(graph).graph.value_info
    }
    found = nodes(graph, "GridSample")
    assert len(found) == 3
    for node, size in zip(found, ([2, 3], [4, 6], [8, 12])):
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"mode": b"bilinear", "padding_mode": b"zeros", "align_corners": 0}
        assert shapes[node.input[0]] == [8, 32, *size]
        assert shapes[node.input[1]] == [8, 4, 6 + 24 + 96, 2]


def test_tables_are_constants_and_windows_are_selected_once(graph):
    known = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    found = nodes(graph, "Gather")
    assert len(found) == 5 * 4  # queries, keys, values and the way back, of five blocks
    assert all(node.input[1] in known for node in found)
    # Gather reads no table of positions: those are added as they are.
    assert not any(node.input[0] in known for node in found)
    biases = [known[n].shape for node in nodes(graph, "Add") for n in node.input if n in known]
    assert biases.count((3, 49, 49)) == 1
    assert biases.count((12, 49, 49)) == 2
    masks = [known[n] for node in nodes(graph, "Add") for n in node.input if n in known and known[n].ndim == 4]
    (mask,) = [m for m in masks if m.shape[2:] == (49, 49)]
    assert set(np.unique(mask)) == {-1e4, 0}


def test_only_the_last_masks_are_whole(graph):
    """The others have the size of the map that is looked at."""
    assert len(nodes(graph, "Resize")) == 3 + 1 + 1  # features for masks, memory to stride 4, masks to the image


def test_faint_masks_keep_their_logarithm():
    # ONNX Runtime's own Sigmoid is 0 below -18.
    class Faint(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores, self.logarithm = mask2former.Scores(), mask2former.Logarithm()

        def forward(self, x):
            masks = torch.linspace(-40, 40, 64, device=x.device).reshape(1, 1, 8, 8) + x[:, :1] * 0
            return self.logarithm(self.scores(torch.tensor([[[2.0, 0.0, 1.0]]]), masks, (16, 16)))

    module = Faint()
    model = dense.export_dense(module, height=8, width=8)
    found = run(model, np.zeros((1, 3, 8, 8), np.float32))
    with torch.no_grad():
        wanted = module(torch.zeros(1, 3, 8, 8)).numpy()
    assert wanted.min() == pytest.approx(np.log(1e-10), abs=1e-4)
    assert (wanted < -18).mean() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_half_precision(graph, image):
    half = dense._copy(graph)
    kept = to_fp16(half).kept
    for part in ("scores/Exp", "logarithm/Clip", "logarithm/Log", "backbone.norm0/Mul"):
        assert any(name.startswith(part) for name in kept), part
    wanted, found = run(graph, image.numpy()), run(half, image.numpy())
    error = np.abs(found - wanted) / wanted.std()
    assert error.max() < 0.05
    assert error.mean() < 0.005


def test_bundle(made, frame, scores):
    """The labels are those of the class scores, read at the nearest pixel."""
    assert (made.base.logits_height, made.base.logits_width, made.base.upsample) == (45, 75, "nearest")
    assert made.provenance["base"]["parity"]["max_error_std"] < 5e-5
    assert "to multiples of 32 (45x75 -> 64x96)" in made.provenance["base"]["padding"]
    wanted = F.interpolate(scores, (90, 150), mode="nearest").argmax(1)[0].numpy()
    found = open_pipeline(made, backend="onnxruntime", threads=1).run(frame).labels
    assert (np.bincount(wanted.reshape(-1)) > 50).sum() >= 5
    assert (found == wanted).mean() > 0.999


def test_old_checkpoints_are_refused(built, tmp_path):
    key = "decode_head.transformer_decoder.layers.0.attentions.0.attn.in_proj_weight"
    torch.save({"state_dict": {key: torch.zeros(768, 256)}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"expected key names of MMSegmentation 1\.0"):
        base_network(NAME, 19, tmp_path / "w.pth")
