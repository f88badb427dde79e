"""Mask2Former against numbers of the official code, whose weights are made from their names."""

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
from crispseg.models.bases import BASES, base_info, build_base, mask2former, mask2former_pixels, swin  # noqa: E402
from crispseg.models.bases.mask2former_queries import BLOCKED, attention_bias  # noqa: E402
from crispseg.models.checkpoints import load_strict  # noqa: E402

torch.set_num_threads(1)

GATE = 2e-4  # of the output's standard deviation; float32 noise is 6e-6
TINY = "mask2former_swin_t"
NAMES = fill_mmseg.QUERIES
INDEX = "relative_position_index"


def outputs(net, size):
    """Class logits, masks and class scores, without the batch."""
    x = torch.from_numpy(fill_mmseg.image(*size))
    with torch.no_grad():
        classes, masks = net.decode_head(net.backbone(x))
        return classes[0].numpy(), masks[0].numpy(), net.scores(classes, masks, size)[0].numpy()


def errors(net, size=(72, 104)):
    """Largest error of each golden output in units of its deviation."""
    facts, golden, found = fill_mmseg.manifest(TINY), fill_mmseg.golden(TINY), {}
    for name, y in zip(("cls", "mask", "seg"), outputs(net, size)):
        key = "{}_{}x{}".format(name, *size)
        if key in golden:
            y = y if name == "cls" else y[:, ::4, ::4]
            assert y.shape == golden[key].shape
            found[key] = float(np.abs(y - golden[key]).max()) / facts["std"][key]
    return found


@pytest.fixture(scope="module")
def loaded():
    net, _, state = fill_mmseg.network(TINY)
    return net, state


@pytest.fixture
def net(loaded):
    return loaded[0]


def test_weights_are_the_golden_ones_under_the_official_names(loaded):
    net, state = loaded
    facts, info = fill_mmseg.manifest(TINY), BASES[NAMES[TINY]]
    assert fill_mmseg.digest({k: v.numpy() for k, v in state.items()}) == facts["weights_sha256"]
    assert len(state) == facts["n_keys"]
    own = net.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in own.items())
    extra = set(state) - set(own)
    assert extra == {k for k in state if k.endswith(INDEX)}
    # A constant of the file is not read; it must be the one that is built.
    buffers = dict(net.named_buffers())
    assert all(torch.equal(buffers[k], state[k]) for k in extra)
    assert len(extra) == 12
    assert sum(p.numel() for p in net.parameters()) == facts["params"] == info.parameters


@pytest.mark.parametrize("size", [(96, 160), (72, 104)])
def test_outputs(net, size):
    found = errors(net, size)
    assert len(found) == (3 if size == (72, 104) else 2)
    assert max(found.values()) <= GATE


def test_every_module(net):
    facts, golden = fill_mmseg.manifest(TINY), fill_mmseg.golden(TINY)
    with torch.no_grad():
        maps = net.backbone(torch.from_numpy(fill_mmseg.image(96, 160)))
        fine, levels = net.decode_head.pixel_decoder(maps)
        found = {f"feat{i}": y for i, y in enumerate(maps)}
        found.update({f"pix_level{i}": y for i, y in enumerate(levels)})
        found["pix_mask_feature"] = net.decode_head.pixel_decoder.mask_feature(fine)
        for i, (classes, masks) in enumerate(net.decode_head.predictions(maps)):
            found.update({f"dec{i}_cls": classes, f"dec{i}_mask": masks})
    assert set(facts["probes"]) <= set(found)
    for name, probe in facts["probes"].items():
        y = found[name].numpy()
        assert list(y.shape) == probe["shape"]
        mean, std, absmax = probe["mean_std_absmax"]
        np.testing.assert_allclose([y.mean(), y.std(ddof=1), np.abs(y).max()], [mean, std, absmax], atol=GATE * std)
        y = y[0]
        part = y[::10] if y.ndim == 2 else y[[0, len(y) // 3, 2 * len(y) // 3, -1], ::2, ::2]
        np.testing.assert_allclose(part, golden[f"probe_{name}_96x160"], atol=GATE * std)


def test_logits_are_logarithms_of_the_scores_at_the_size_of_the_image(net):
    x = torch.from_numpy(fill_mmseg.image(72, 104))
    with torch.no_grad():
        scores, logits = net.class_scores(x), net(x)
    assert logits.shape == (1, 19, 72, 104)
    assert scores.max() > 1  # no probabilities
    np.testing.assert_allclose(logits.numpy(), np.log(scores.numpy()), rtol=1e-6, atol=1e-6)
    low = net.logarithm(torch.tensor([0.0, 1e-12, 1e-9]))
    np.testing.assert_allclose(low.numpy(), [-23.025851, -23.025851, -20.723266], rtol=1e-6)
    assert (BASES[NAMES[TINY]].stride, BASES[NAMES[TINY]].upsample, BASES[NAMES[TINY]].pad_to) == (1, "nearest", 32)


def test_two_images_at_once_and_sides_of_any_length(net):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 50, 67)
    with torch.no_grad():
        both, single = net(x), torch.cat([net(x[:1]), net(x[1:])])
    assert both.shape == (2, 19, 50, 67)
    assert float((both - single).abs().max()) < GATE * float(single.std())


def test_a_query_blocked_everywhere_sees_everything():
    masks = torch.tensor([[[-1.0, 2.0, 0.0], [-1.0, -2.0, -3.0]]])
    wanted = torch.tensor([[[[BLOCKED, 0.0, 0.0], [0.0, 0.0, 0.0]]]])
    assert torch.equal(attention_bias(masks), wanted)


def test_epsilons(net):
    """The outputs cannot tell 1e-5 from 1e-6 in a LayerNorm."""
    norms = [m for m in net.modules() if isinstance(m, (nn.LayerNorm, nn.GroupNorm))]
    assert len(norms) == 72 + 5
    assert {m.eps for m in norms} == {1e-5}
    assert {m.num_groups for m in norms if isinstance(m, nn.GroupNorm)} == {32}


def _swap(module, one, other):
    a, b = getattr(module, one).weight, getattr(module, other).weight
    a.data, b.data = b.data, a.data


def _flip(embedding):
    embedding.weight.data = embedding.weight.data.flip(0)


grid_sample, windows_of, sine = F.grid_sample, swin.windows_of, mask2former_pixels.sine_encoding
MISTAKES = {
    "corners": lambda m, patch: patch.setattr(
        F, "grid_sample", lambda x, g, *a, **k: grid_sample(x, g, *a, align_corners=True)
    ),
    "border": lambda m, patch: patch.setattr(
        F, "grid_sample", lambda x, g, mode, pad, **k: grid_sample(x, g, mode, "border", **k)
    ),
    "merged pixels": lambda m, patch: patch.setattr(swin, "_by_pixel", lambda v: v),
    "no shift": lambda m, patch: patch.setattr(swin, "windows_of", lambda n, s, w, _, d: windows_of(n, s, w, 0, d)),
    "bias turned round": lambda m, patch: [
        patch.setitem(a._buffers, INDEX, a.relative_position_index.t())
        for a in m.modules()
        if isinstance(a, swin.WindowAttention)
    ],
    "no mask": lambda m, patch: patch.setattr(mask2former, "attention_bias", lambda v: torch.zeros(())),
    "sine": lambda m, patch: [
        patch.setattr(f, "sine_encoding", lambda s, d: sine(s, d).flip(1)) for f in (mask2former, mask2former_pixels)
    ],
    "levels of queries": lambda m, _: _flip(m.decode_head.level_embed),
    "levels of pixels": lambda m, _: _flip(m.decode_head.pixel_decoder.level_encoding),
    "queries": lambda m, _: _swap(m.decode_head, "query_embed", "query_feat"),
    "gelu": lambda m, patch: [patch.setattr(n, "approximate", "tanh") for n in m.modules() if isinstance(n, nn.GELU)],
}
TWICE = ("levels of queries", "levels of pixels", "queries")  # undone by being made again


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_fails_the_gate(net, monkeypatch, name):
    MISTAKES[name](net, monkeypatch)
    try:
        worst = max(errors(net).values())
    finally:
        if name in TWICE:
            MISTAKES[name](net, monkeypatch)
    assert worst > (2 if name == "gelu" else 50) * GATE


def test_every_key_must_fit(loaded):
    net, state = loaded
    info = base_info(NAMES[TINY])
    dropped = load_strict(net, state, info.droppable, "a.pth", info.refused)
    assert {key.rpartition(".")[2] for key in dropped} == {INDEX}
    name = "decode_head.transformer_decoder.layers.3.ffn.layers.1.weight"
    with pytest.raises(CheckpointError, match=f"1 missing: {name}"):
        load_strict(net, {k: v for k, v in state.items() if k != name}, info.droppable)


@pytest.mark.parametrize(
    "key",
    [
        "decode_head.pixel_decoder.encoder.layers.0.attentions.0.sampling_offsets.weight",
        "decode_head.transformer_decoder.layers.2.attentions.1.attn.in_proj_weight",
        "decode_head.transformer_decoder.layers.2.ffns.0.layers.0.0.weight",
    ],
)
def test_old_key_names_are_refused(key):
    info = base_info(NAMES[TINY])
    with pytest.raises(
        CheckpointError, match=r"w\.pth: expected key names of MMSegmentation 1\.0 .* pull request 2532"
    ):
        load_strict(nn.Linear(1, 1), {key: torch.zeros(1)}, info.droppable, "w.pth", info.refused)


@pytest.mark.parametrize("arch", list(NAMES))
def test_names_and_numbers_equal_the_official_ones(arch):
    info, facts = BASES[NAMES[arch]], fill_mmseg.manifest(arch)
    with torch.device("meta"):
        net = build_base(info.name, 19)
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert shapes == {k: s for k, s in fill_mmseg.keys(arch).items() if not k.endswith(INDEX)}
    assert sum(p.numel() for p in net.parameters()) == facts["params"] == info.parameters
    assert facts["macs_1024x2048"] == info.macs


@pytest.mark.parametrize("arch", [TINY, pytest.param("mask2former_swin_l", marks=pytest.mark.slow)])
def test_operations_equal_the_official_ones(arch):
    """Convolutions and matrix products at 1024 x 2048, counted without computing them."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = build_base(NAMES[arch], 19).eval()
        image = torch.empty(1, 3, 1024, 2048)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    # The sum over the queries at the size of the image is not in the official count.
    facts = fill_mmseg.manifest(arch)
    assert counter.get_total_flops() // 2 - facts["semantic_einsum"] == facts["macs_1024x2048"]


@pytest.mark.slow
def test_exported_graph_gives_the_golden_scores(net):
    ort = pytest.importorskip("onnxruntime")
    from crispseg.export import dense

    model = dense.export_dense(net, height=72, width=104).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": fill_mmseg.image(72, 104)})[0]
    golden, std = fill_mmseg.golden(TINY)["seg_72x104"], fill_mmseg.manifest(TINY)["std"]["seg_72x104"]
    assert np.abs(np.exp(logits[0])[:, ::4, ::4] - golden).max() <= GATE * std


@pytest.mark.slow
def test_large():
    """Of Swin-L there are mean, deviation and largest value alone."""
    net, _, state = fill_mmseg.network("mask2former_swin_l")
    facts = fill_mmseg.manifest("mask2former_swin_l")
    assert fill_mmseg.digest({k: v.numpy() for k, v in state.items()}) == facts["weights_sha256"]
    for name, y in zip(("cls", "mask", "seg"), outputs(net, (72, 104))):
        mean, std, absmax = facts["stats"][f"{name}_72x104"]
        np.testing.assert_allclose([y.mean(), y.std(ddof=1), np.abs(y).max()], [mean, std, absmax], atol=GATE * std)
