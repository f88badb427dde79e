"""MMSegmentation's networks against numbers of the official code, whose weights are made from their names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_mmseg  # noqa: E402

from crispseg.errors import CheckpointError  # noqa: E402
from crispseg.models.bases import BASES, build_base, hrnet, mmseg, segformer, segnext  # noqa: E402
from crispseg.models.checkpoints import load_checkpoint, load_strict  # noqa: E402

torch.set_num_threads(1)

GATE = 2e-4  # of the logits' standard deviation; float32 noise is 6e-6
SIZES = [(96, 160), (72, 104)]
OPERATORS = {
    *("Conv", "Relu", "Add", "Sub", "Mul", "Div", "Sqrt", "Erf", "ReduceMean", "Softmax", "MatMul"),
    *("BatchNormalization", "InstanceNormalization", "Reshape", "Transpose", "Slice", "Resize", "Concat"),
}


class Case:
    def __init__(self, arch):
        self.arch, self.facts, self.golden = arch, fill_mmseg.manifest(arch), fill_mmseg.golden(arch)
        self.net, self.info, self.state = fill_mmseg.network(arch)

    def wanted(self, size):
        return self.golden["out_%dx%d" % size]

    def error(self, size=(72, 104)):
        """Largest error of the logits in units of their deviation."""
        with torch.no_grad():
            logits = self.net.forward_logits(torch.from_numpy(fill_mmseg.image(*size)))[0].numpy()
        assert logits.shape == self.wanted(size).shape
        return self.relative(logits, size)

    def relative(self, logits, size):
        return float(np.abs(logits - self.wanted(size)).max()) / self.facts["std"]["%dx%d" % size]


@pytest.fixture(scope="module", params=list(fill_mmseg.NAMES))
def c(request):
    """One architecture at a time: each holds 200 to 330 MB."""
    return Case(request.param)


def test_weights_are_the_golden_ones_under_the_official_names(c):
    assert fill_mmseg.digest({k: v.numpy() for k, v in c.state.items()}) == c.facts["weights_sha256"]
    own = c.net.state_dict()
    assert {k: tuple(v.shape) for k, v in own.items()} == fill_mmseg.keys(c.arch)
    assert sum(p.numel() for p in c.net.parameters()) == c.facts["params"] == c.info.parameters
    assert all(torch.equal(v, c.state[k]) for k, v in own.items())


@pytest.mark.parametrize("size", SIZES)
def test_logits(c, size):
    assert c.error(size) <= GATE


def test_logits_at_the_size_of_the_image(c):
    x = torch.from_numpy(fill_mmseg.image(72, 104))
    with torch.no_grad():
        full = F.interpolate(c.net.forward_logits(x), (72, 104), mode="bilinear", align_corners=False)
        torch.testing.assert_close(c.net(x), full, rtol=0, atol=0)
    stride = c.info.stride
    assert c.facts["logits_stride"] == stride
    assert c.wanted((72, 104)).shape[1:] == (-(-72 // stride), -(-104 // stride))


def test_maps_of_the_backbone(c):
    with torch.no_grad():
        maps = c.net.backbone(torch.from_numpy(fill_mmseg.image(96, 160)))
    for index, features in enumerate(maps):
        facts, y = c.facts["probes"][f"feat{index}"], features.numpy()
        assert list(y.shape) == facts["shape"]
        mean, std, absmax = facts["mean_std_absmax"]
        np.testing.assert_allclose([y.mean(), y.std(ddof=1), np.abs(y).max()], [mean, std, absmax], atol=2e-4 * std)
        planes = y[0, [0, y.shape[1] // 3, 2 * y.shape[1] // 3, y.shape[1] - 1], ::2, ::2]
        np.testing.assert_allclose(planes, c.golden[f"probe_feat{index}_96x160"], atol=GATE * std)


def exported(net):
    """(graph, its logits for the 72x104 image, the same in torch)."""
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from crispseg.export import dense

    model = dense.export_dense(net, height=72, width=104)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(dense.to_bytes(model), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": fill_mmseg.image(72, 104)})
    with torch.no_grad():
        eager = net.forward_logits(torch.from_numpy(fill_mmseg.image(72, 104))).numpy()
    return model, logits, eager


@pytest.mark.slow
def test_exported_graph_gives_the_golden_logits(c):
    _, logits, eager = exported(c.net)
    assert c.relative(logits[0], (72, 104)) <= GATE
    assert np.abs(logits - eager).max() < 2e-5 * eager.std()


@pytest.mark.parametrize("arch", list(fill_mmseg.NAMES))
def test_exported_graph_of_one_block_of_every_kind(arch, monkeypatch):
    """What the exporter does with each layer, without the dozens of equal ones."""
    from crispseg.export.sources import tensorrt_gaps

    net, _, state = fill_mmseg.shallow(arch, monkeypatch)
    kinds = {type(module) for module in net.modules()}
    assert kinds == {type(module) for module in build_base(fill_mmseg.NAMES[arch], 19).modules()}
    model, logits, eager = exported(net)
    assert np.abs(logits - eager).max() < 2e-5 * eager.std()
    assert {n.op_type for n in model.graph.node} <= OPERATORS
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert tensorrt_gaps(model) == {}
    for node in model.graph.node:
        modes = {a.s for a in node.attribute if a.name == "coordinate_transformation_mode"}
        assert modes <= {b"half_pixel", b"pytorch_half_pixel"}


MISTAKES = {
    "segnext_l": {
        "six steps": lambda m, patch: patch.setattr(segnext, "STEPS", 6),
        "raw bases": lambda m, patch: patch.setitem(
            m.decode_head.hamburger.ham._buffers, "bases", torch.rand(1, 1024, 16)
        ),
        "other draw": lambda m, patch: patch.setitem(
            m.decode_head.hamburger.ham._buffers, "bases", F.normalize(torch.rand(1, 1024, 16), dim=1)
        ),
    },
    "fcn_hr48": {
        "epsilon": lambda m, patch: [patch.setattr(n, "eps", 1e-3) for n in m.modules() if hasattr(n, "eps")],
        "nearest": lambda m, patch: patch.setattr(hrnet, "resize", lambda x, size: F.interpolate(x, size=size)),
        "relu before the sum": lambda m, patch: patch.setitem(
            m.backbone.stage3[0].fuse_layers[2][0][1]._modules, "2", nn.ReLU()
        ),
    },
    "segformer_b5": {
        "gelu": lambda m, patch: [
            patch.setattr(n, "approximate", "tanh") for n in m.modules() if isinstance(n, nn.GELU)
        ],
        "head without relu": lambda m, patch: [patch.setattr(n, "relu", False) for n in m.decode_head.convs],
        "order of the maps": lambda m, patch: patch.setattr(
            segformer, "concatenate", lambda maps: torch.cat(mmseg.concatenate(maps).split(256, 1)[::-1], 1)
        ),
    },
}


@pytest.mark.parametrize("index", range(3))
def test_a_mistake_fails_the_gate(c, monkeypatch, index):
    name = list(MISTAKES[c.arch])[index]
    torch.manual_seed(0)
    MISTAKES[c.arch][name](c.net, monkeypatch)
    assert c.error() > (2 if name == "gelu" else 10) * GATE, name


def test_aligned_corners_fail_the_gate(c, monkeypatch):
    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: interpolate(*a, **{**k, "align_corners": True}))
    assert c.error() > 50 * GATE


def test_epsilons(c):
    """The outputs cannot tell 1e-5 from 1e-6 in a LayerNorm."""
    wanted = {
        nn.BatchNorm2d: 1e-5,
        nn.GroupNorm: 1e-5,
        mmseg.LayerNorm: {"segnext_l": 1e-5, "segformer_b5": 1e-6}.get(c.arch),
    }
    for module in c.net.modules():
        assert getattr(module, "eps", None) in (None, wanted.get(type(module), 1e-6))
        assert not isinstance(module, nn.LayerNorm) or isinstance(module, mmseg.LayerNorm)


def test_checkpoint_files(c, tmp_path):
    head = {"auxiliary_head.conv_seg.weight": torch.zeros(19, 4, 1, 1)}
    torch.save({"meta": {"epoch": 1, "CLASSES": ("road",)}, "state_dict": {**c.state, **head}}, tmp_path / "a.pth")
    assert load_strict(c.net, load_checkpoint(tmp_path / "a.pth"), c.info.droppable) == list(head)
    name = next(k for k in reversed(c.state) if k.endswith(".weight"))
    cut = {k: v for k, v in c.state.items() if k != name}
    with pytest.raises(CheckpointError, match=f"1 missing: {name}"):
        load_strict(c.net, cut, c.info.droppable)
    with pytest.raises(CheckpointError, match="1 not expected: backbone.new"):
        load_strict(c.net, {**c.state, "backbone.new": torch.zeros(1)}, c.info.droppable)


@pytest.mark.parametrize("arch", list(fill_mmseg.NAMES))
def test_operations_equal_the_official_ones(arch):
    """Convolutions and matrix products at 1024 x 2048, counted without computing them."""
    from torch.utils.flop_counter import FlopCounterMode

    info = BASES[fill_mmseg.NAMES[arch]]
    with torch.device("meta"):
        net = build_base(info.name, 19).eval()
        image = torch.empty(1, 3, 1024, 2048)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    assert counter.get_total_flops() // 2 == fill_mmseg.manifest(arch)["macs_1024x2048"] == info.macs


def test_layer_norm_written_out_equals_torch(monkeypatch):
    norm = mmseg.LayerNorm(32, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 32) * 3 + 1
    wanted = norm(x)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    torch.testing.assert_close(norm(x), wanted, rtol=0, atol=2e-6)


def test_bases_of_the_factorisation_are_drawn_once():
    one, two = segnext.Factorisation(), segnext.Factorisation()
    assert torch.equal(one.bases, two.bases)
    assert one.state_dict() == {}
    torch.testing.assert_close(one.bases.norm(dim=1), torch.ones(1, 16))
    x = torch.rand(1, 1024, 3, 5)
    assert torch.equal(one(x), two(x))
