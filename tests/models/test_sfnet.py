"""SFNet-Lite against numbers of the official code, whose weights are regenerated from their names."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_bases  # noqa: E402

from crispseg.errors import CheckpointError, InputError  # noqa: E402
from crispseg.models.bases import base_info, blocks, build_base, sfnet  # noqa: E402
from crispseg.models.checkpoints import load_checkpoint, load_strict  # noqa: E402

torch.set_num_threads(1)

ARCH = "sfnet_lite_r18"
FACTS = fill_bases.manifest(ARCH)
GOLDEN = np.load(fill_bases.DATA / FACTS["npz"])
GATE = 2e-4  # of the logits' standard deviation; float32 noise is 4e-6, the mildest mistake costs 1e-2
INFO = base_info("sfnet-lite-r18")


@pytest.fixture(scope="module")
def state():
    filled = fill_bases.fill(FACTS["keys"], FACTS["gains"])
    assert fill_bases.digest(filled) == FACTS["state_sha256"]
    return {k: torch.from_numpy(v) for k, v in filled.items()}


def build(state):
    net = build_base("sfnet-lite-r18", 19)
    load_strict(net, state, INFO.droppable)
    return net.eval()


@pytest.fixture(scope="module")
def net(state):
    return build(state)


def run(net, size):
    x, q = fill_bases.image(ARCH, *size)
    name = f"in_q_{size[0]}x{size[1]}"
    if name in GOLDEN:
        np.testing.assert_array_equal(q, GOLDEN[name])
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()


def error(net, size):
    """Largest error in units of the logits' deviation."""
    name = f"{size[0]}x{size[1]}"
    return (
        float(np.abs(run(net, size)[:, :, ::4, ::4] - GOLDEN[f"out_sub4_{name}"]).max()) / FACTS["sizes"][name]["std"]
    )


@pytest.mark.parametrize("size", [(96, 160), (128, 256)])
def test_golden_logits_and_classes(net, size):
    logits = run(net, size)
    name = f"{size[0]}x{size[1]}"
    facts = FACTS["sizes"][name]
    tolerance = GATE * facts["std"]
    assert list(logits.shape) == facts["out_shape"]
    assert np.abs(logits[:, :, ::4, ::4] - GOLDEN[f"out_sub4_{name}"]).max() <= tolerance
    assert logits.std() == pytest.approx(facts["std"], rel=1e-3)
    top = np.sort(logits, axis=1)
    clear = top[:, -1] - top[:, -2] > tolerance
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(logits.argmax(1)[clear], GOLDEN[f"argmax_{name}"][None][clear])


def test_golden_logits_at_stride_4(net):
    x, _ = fill_bases.image(ARCH, 96, 160)
    with torch.no_grad():
        head = net.forward_logits(torch.from_numpy(x)).numpy()
    golden = GOLDEN["head_96x160"].astype(np.float32)
    assert head.shape == golden.shape == (1, 19, 24, 40)
    np.testing.assert_allclose(head, golden, atol=2e-3, rtol=1e-3)  # stored in half precision


def test_size_that_32_does_not_divide(net):
    extra = FACTS["extra_72x120"]
    x, q = fill_bases.image(ARCH, 72, 120)
    assert hashlib.sha256(q.tobytes()).hexdigest() == extra["in_q_sha256"]
    with torch.no_grad():
        logits = net(torch.from_numpy(x)).numpy()
    found = logits.reshape(-1)[extra["flat_index"]]
    assert np.abs(found - np.array(extra["value"])).max() <= GATE * extra["std"]
    moved = np.abs(np.bincount(logits.argmax(1).reshape(-1), minlength=19) - np.array(extra["argmax_hist"])).sum()
    assert moved <= 4


def test_every_module_gives_the_official_numbers(net):
    x, _ = fill_bases.image(ARCH, 96, 160)
    seen = {}
    hooks = [
        m.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.detach().clone()}))
        for name, m in net.named_modules()
    ]
    with torch.no_grad():
        net(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    checked = 0
    for name, shape, mean, std, absmax, *values in FACTS["probes_96x160"]:
        y = seen[name].numpy()
        assert "x".join(map(str, y.shape)) == shape, name
        picked = y.reshape(-1)[np.linspace(0, y.size - 1, 4).astype(int)]
        found = np.array([y.mean(), y.std(ddof=1), np.abs(y).max(), *picked])
        np.testing.assert_allclose(
            found, [mean, std, absmax, *values], rtol=2e-4, atol=2e-4 * max(std, 0.1), err_msg=name
        )
        checked += 1
    assert checked >= 40


def test_parameters(net):
    assert sum(p.numel() for p in net.parameters()) == FACTS["params_reaching_logits"] == 12_079_863
    own = {k for k in net.state_dict()}
    official = {line.split(" ")[0] for line in FACTS["keys"]}
    assert own < official
    assert all(k.startswith(("head.dsn.", "head.fpn_in.2.")) for k in official - own)


MISTAKES = {
    "dilation": lambda m: [setattr(b.conv2, a, (1, 1)) for b in m.layer4 for a in ("dilation", "padding")],
    "eps": lambda m: [setattr(b, "eps", 1e-3) for b in m.modules() if isinstance(b, nn.BatchNorm2d)],
    "branch order": lambda m: setattr(m.head.ppm, "stages", m.head.ppm.stages[::-1]),
    "relu": lambda m: [stage.append(nn.ReLU()) for stage in m.head.ppm.stages],
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_in_the_network_fails_the_gate(state, mistake):
    wrong = build(state)
    MISTAKES[mistake](wrong)
    assert error(wrong, (96, 160)) > 50 * GATE


@pytest.mark.parametrize("mistake", ["sign", "border", "corners", "swapped", "resize"])
def test_a_mistake_in_the_warp_fails_the_gate(net, monkeypatch, mistake):
    warp, sample, interpolate = blocks.flow_warp, F.grid_sample, F.interpolate
    if mistake == "sign":
        monkeypatch.setattr(sfnet, "flow_warp", lambda x, flow: warp(x, -flow))
    elif mistake == "swapped":
        monkeypatch.setattr(sfnet, "flow_warp", lambda x, flow: warp(x, flow.flip(1)))
    elif mistake == "border":
        monkeypatch.setattr(F, "grid_sample", lambda *a, **k: sample(*a, **{**k, "padding_mode": "border"}))
    elif mistake == "corners":
        monkeypatch.setattr(F, "grid_sample", lambda *a, **k: sample(*a, **{**k, "align_corners": True}))
    else:
        monkeypatch.setattr(F, "interpolate", lambda *a, **k: interpolate(*a, **{**k, "align_corners": False}))
    assert error(net, (96, 160)) > 50 * GATE
    monkeypatch.undo()
    assert error(net, (96, 160)) <= GATE


@pytest.mark.parametrize("bins", [(1, 1), (2, 2), (3, 3), (6, 6), (6, 12)])
@pytest.mark.parametrize("size", [(3, 5), (7, 4), (12, 24), (1, 1)])
def test_matrix_pooling_equals_torch(bins, size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(blocks.adaptive_average_pool(x, bins), F.adaptive_avg_pool2d(x, bins), rtol=0, atol=1e-6)


def test_warp_without_flow_is_the_aligned_resize():
    x = torch.randn(1, 2, 4, 6)
    torch.testing.assert_close(
        blocks.flow_warp(x, torch.zeros(1, 2, 9, 13)), blocks.resize(x, (9, 13)), rtol=0, atol=1e-5
    )


def test_warp_keeps_coordinates_in_single_precision(monkeypatch):
    grids = []
    sample = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda x, grid, **k: grids.append(grid) or sample(x, grid, **k))
    x, flow = torch.randn(1, 2, 4, 600), torch.randn(1, 2, 4, 600)
    blocks.flow_warp(x, flow.half().float())
    single = grids[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blocks.flow_warp(x, flow.half())
    torch.testing.assert_close(grids[1], single, rtol=0, atol=0)


def test_cached_grids_made_without_gradients_serve_training(state):
    net = build(state).train()
    net.head.ppm.stages[0][2].eval()  # one pixel a channel: nothing to normalise over
    with torch.inference_mode():
        net.eval()(torch.zeros(1, 3, 48, 80))
    net(torch.randn(1, 3, 48, 80)).mean().backward()
    missing = [n for n, p in net.named_parameters() if p.grad is None]
    assert not missing


class TestCheckpoints:
    def save(self, path, state, wrap, prefix):
        state = {prefix + k: v for k, v in state.items()}
        if wrap == "official":
            state = {
                "state_dict": state,
                "optimizer": {"lr": 1e-2},
                "epoch": 3,
                "mean_iu": np.float64(0.79),
                "command": "x",
            }
        elif wrap:
            state = {wrap: state}
        torch.save(state, path)
        return path

    @pytest.mark.parametrize("wrap", [None, "state_dict", "official"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_wrappers_round_trip(self, tmp_path, state, net, wrap, prefix):
        path = self.save(tmp_path / "a.pth", state, wrap, prefix)
        loaded = build_base("sfnet-lite-r18", 19)
        dropped = load_strict(loaded, load_checkpoint(path), INFO.droppable, str(path))
        assert sorted({k.split(".")[1] for k in dropped}) == ["dsn", "fpn_in"]
        assert len(dropped) == FACTS["n_keys"] - len(net.state_dict())
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.state_dict().items())

    def test_missing_key_is_named(self, state):
        cut = {k: v for k, v in state.items() if k != "head.flow_align_module.down_h.weight"}
        with pytest.raises(CheckpointError, match=r"1 missing: head\.flow_align_module\.down_h\.weight"):
            load_strict(build_base("sfnet-lite-r18", 19), cut, INFO.droppable)

    def test_extra_key_is_named(self, state):
        with pytest.raises(CheckpointError, match=r"1 not expected: head\.fpn_in\.3\.0\.weight"):
            load_strict(
                build_base("sfnet-lite-r18", 19), {**state, "head.fpn_in.3.0.weight": torch.zeros(1)}, INFO.droppable
            )

    def test_dead_keys_are_refused_without_leave(self, state):
        with pytest.raises(CheckpointError, match="not expected"):
            load_strict(build_base("sfnet-lite-r18", 19), state)

    def test_other_number_of_classes_is_named(self, state):
        with pytest.raises(CheckpointError, match=r"head\.conv_last\.1\.weight \(expected \[11, 128, 1, 1\]"):
            load_strict(build_base("sfnet-lite-r18", 11), state, INFO.droppable)


def test_names_may_carry_underscores():
    assert base_info("SFNet_Lite_R18") is INFO


def test_unknown_base_lists_the_known():
    with pytest.raises(InputError, match="sfnet-dfv2, sfnet-lite-r18, sfnet-lite-stdc1"):
        build_base("sfnet", 19)


@pytest.mark.parametrize("classes", [1, 256])
def test_classes_out_of_range(classes):
    with pytest.raises(InputError, match="2 to 255"):
        build_base("small", classes)


def test_small_rebuilds_from_its_config():
    first = build_base("small", 5)
    again = build_base("small", 5, first.config)
    assert {k: v.shape for k, v in first.state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}
    with pytest.raises(CheckpointError, match="with 5"):
        build_base("small", 6, first.config)
    with pytest.raises(CheckpointError, match="settings of a base 'small', found ValueError"):
        build_base("small", 5, {"architecture": "small", "num_classes": 5, "widths": "x"})
    with pytest.raises(CheckpointError, match=r"a\.pt: expected the settings .* found no 'widths'; use the version"):
        build_base("small", 5, {"architecture": "small", "num_classes": 5}, "a.pt")


def test_exported_graph_gives_the_golden_logits(net):
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from crispseg.export.dense import export_dense, parity, to_bytes

    model = export_dense(net, height=72, width=120)
    assert {n.op_type for n in model.graph.node} <= {
        *("Conv", "Relu", "MaxPool", "Add", "Sub", "Mul", "GlobalAveragePool", "MatMul", "Resize", "Concat"),
        *("ReduceMean", "ReduceMax", "Sigmoid", "Slice", "Transpose", "GridSample"),
    }
    x = torch.from_numpy(fill_bases.image(ARCH, 72, 120)[0])
    result = parity(net, model, x)
    assert result["max_error_std"] < 1e-4
    assert result["argmax_agreement"] > 0.998
    session = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": x.numpy()})
    full = blocks.resize(torch.from_numpy(logits), (72, 120)).numpy().reshape(-1)
    extra = FACTS["extra_72x120"]
    assert np.abs(full[extra["flat_index"]] - np.array(extra["value"])).max() <= GATE * extra["std"]
