"""SFNet, SFNet-Lite, SRNet and SANet against numbers of the official code, whose weights are made from their names."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_bases  # noqa: E402
import fill_mmseg  # noqa: E402

from crispseg.errors import CheckpointError  # noqa: E402
from crispseg.models.bases import BASES, blocks, build_base, sanet, srnet  # noqa: E402
from crispseg.models.checkpoints import load_checkpoint, load_strict  # noqa: E402

torch.set_num_threads(1)

GOLDEN = np.load(fill_bases.DATA / "golden_96x160.npz")
GATE = 2e-4  # of the logits' standard deviation; float32 noise is 4e-6, the mildest mistake costs 1e-2
ARCHS = [a for a in fill_bases.NAMES if a != "sfnet_lite_r18"]  # that one has its own file
FAMILY = sorted(set(fill_bases.NAMES.values()))


class Case:
    def __init__(self, arch):
        self.arch = arch
        self.facts = fill_bases.manifest(arch)
        self.net, self.info, self.state = fill_bases.network(arch)

    def run(self, height, width):
        x, q = fill_bases.image(self.arch, height, width)
        with torch.no_grad():
            return self.net(torch.from_numpy(x)).numpy(), hashlib.sha256(q.tobytes()).hexdigest()


@pytest.fixture(scope="module", params=ARCHS)
def c(request):
    """One architecture at a time: the large ones hold 200 MB."""
    return Case(request.param)


@pytest.fixture(scope="module")
def sanet_case():
    return Case("sanet_c19")


class TestGolden:
    def test_weights_are_the_golden_ones(self, c):
        assert fill_bases.digest({k: v.numpy() for k, v in c.state.items()}) == c.facts["state_sha256"]
        assert len(c.state) == c.facts["n_keys"]

    def test_logits_and_every_module(self, c):
        seen, hooks = {}, []
        for name, module in c.net.named_modules():

            def keep(_, __, y, name=name):  # a copy: the ReLU behind it may overwrite it
                y = y[0] if isinstance(y, (tuple, list)) else y
                seen.setdefault(name, []).append(y.numpy().copy())

            hooks.append(module.register_forward_hook(keep))
        logits, digest = c.run(96, 160)
        for hook in hooks:
            hook.remove()
        facts = c.facts["sizes"]["96x160"]
        assert digest == facts["in_q_sha256"]
        assert list(logits.shape) == facts["out_shape"]
        assert logits.std() == pytest.approx(facts["std"], rel=1e-3)
        assert logits.mean() == pytest.approx(facts["mean"], abs=1e-3 * facts["std"])
        assert np.abs(logits).max() == pytest.approx(facts["absmax"], abs=GATE * facts["std"])
        if c.arch in GOLDEN:
            assert np.abs(logits[:, :, ::8, ::8] - GOLDEN[c.arch]).max() <= GATE * facts["std"]
        counts = np.bincount(logits.argmax(1).reshape(-1), minlength=c.facts["classes"])
        assert np.abs(counts - np.array(facts["argmax_hist"])).sum() <= 2 * facts["px_margin_below_1e_4std"] + 4
        checked = 0
        for name, shape, mean, std, absmax, *values in c.facts["probes_96x160"]:
            outputs = seen.get(own_name(c.net, name))
            if outputs is None:
                assert name.startswith(("conv_out16", "aux_layer")), name
                continue
            y = outputs.pop(0) if len(outputs) > 1 else outputs[0]
            if name == "conv_out32" and list(y.shape) != facts["out_shape"]:
                continue  # the official SANet-Tiny upsamples inside its head
            assert "x".join(map(str, y.shape)) == shape, name
            picked = y.reshape(-1)[np.linspace(0, y.size - 1, 4).astype(int)]
            found = np.array([y.mean(), y.std(ddof=1) if y.size > 1 else 0.0, np.abs(y).max(), *picked])
            spread = 2e-4 * max(std, 0.1)
            wanted = [mean, std, absmax, *values]
            np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=spread, err_msg=name)
            checked += 1
        assert checked >= 27

    def test_size_that_32_does_not_divide(self, c):
        extra = c.facts["extra_72x120"]
        logits, digest = c.run(72, 120)
        assert digest == extra["in_q_sha256"]
        assert list(logits.shape) == extra["out_shape"]
        found = logits.reshape(-1)[extra["flat_index"]]
        assert np.abs(found - np.array(extra["value"])).max() <= GATE * extra["std"]
        counts = np.bincount(logits.argmax(1).reshape(-1), minlength=c.facts["classes"])
        assert np.abs(counts - np.array(extra["argmax_hist"])).sum() <= 8

    def test_names_parameters_and_stride(self, c):
        own = c.net.state_dict()
        official = {line.split(" ")[0] for line in c.facts["keys"]}
        assert set(own) <= official
        assert all(any(re.match(p, k) for p in c.info.droppable) for k in official - set(own))
        parameters = sum(p.numel() for p in c.net.parameters())
        assert parameters == c.facts["params_reaching_logits"]
        if c.facts["classes"] == 19:
            assert parameters == c.info.parameters
        assert c.facts["classes"] in c.info.classes
        with torch.no_grad():
            low = c.net.forward_logits(torch.zeros(1, 3, 50, 70))
        assert low.shape[2:] == (-(-50 // c.info.stride), -(-70 // c.info.stride))


def own_name(net, official):
    """The module of ours whose output is that of the official module."""
    if re.fullmatch(r"backbone\.x\d+", official) and hasattr(net.backbone, "features"):
        taps = [0, *net.backbone.taps]
        return f"backbone.features.{taps[[2, 4, 8, 16, 32].index(int(official[10:]))]}"
    if official == "backbone" and hasattr(net.backbone, "features"):
        return "backbone.features.0"  # the official one returns the stride 2 map first
    return official


@pytest.mark.parametrize("arch", [a for a in fill_bases.NAMES if a.endswith(("c19",)) or not a.startswith("sanet")])
def test_operations_equal_the_official_ones(arch, monkeypatch):
    """Convolutions and matrix products at 1024 x 2048, counted without computing them."""
    from torch.utils.flop_counter import FlopCounterMode

    facts, info = fill_bases.manifest(arch), BASES[fill_bases.NAMES[arch]]
    # Pooling is not counted; ours is a matrix product.
    pool = F.adaptive_avg_pool2d
    for module in (blocks, sanet):
        monkeypatch.setattr(module, "adaptive_average_pool", pool)
    with torch.device("meta"):
        net = build_base(info.name, 19).eval()
        image = torch.empty(1, 3, 1024, 2048)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    found = counter.get_total_flops() // 2
    if arch.startswith("srnet"):
        found += 256 * 128 * 256  # 256 dot products over the map, written as a product and a sum
    assert found == facts["macs_1024x2048_without_dead_heads"] == info.macs


def test_the_whole_family_is_covered():
    assert set(BASES) == {"small", *FAMILY, *fill_mmseg.NAMES.values(), *fill_mmseg.QUERIES.values()}


class TestCheckpoints:
    """Wrappers, prefixes and heads that only training needs."""

    @pytest.mark.parametrize(
        ("arch", "groups"),
        [
            ("sfnet_lite_stdc1", {"backbone.x8", "backbone.x32", "backbone.fc", "backbone.linear", "head.dsn"}),
            ("sfnet_dfv1", {"head.dsn"}),
            ("sanet_tiny_c11", {"conv_out16"}),
        ],
    )
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_official_files(self, tmp_path, arch, groups, wrapped):
        facts = fill_bases.manifest(arch)
        state = {k: torch.from_numpy(v) for k, v in fill_bases.fill(facts["keys"], facts["gains"]).items()}
        if arch == "sfnet_dfv1":  # published with the supervised pyramid
            state.update({f"head.dsn.{i}.4.bias": torch.zeros(19) for i in range(2)})
        saved = {"module." + k: v for k, v in state.items()} if wrapped else state
        if wrapped:
            saved = {"state_dict": saved, "optimizer": {}, "epoch": 7, "mean_iu": np.float64(0.7), "command": "x"}
        torch.save(saved, tmp_path / "a.pth")
        info = BASES[fill_bases.NAMES[arch]]
        net = build_base(info.name, facts["classes"])
        dropped = load_strict(net, load_checkpoint(tmp_path / "a.pth"), info.droppable)
        assert groups <= {".".join(k.split(".")[:2]) for k in dropped} | {k.split(".")[0] for k in dropped}
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())

    def test_a_head_as_published_is_refused_by_shape(self):
        net = build_base("sanet", 19)
        state = net.state_dict()
        state["sff1.conv_low.0.weight"] = torch.zeros(128, 512, 3, 3)
        with pytest.raises(CheckpointError, match=r"sff1\.conv_low\.0\.weight \(expected \[128, 128, 3, 3\]"):
            load_strict(build_base("sanet", 19), state)

    def test_tiny_weights_are_not_sanet(self):
        with pytest.raises(CheckpointError, match=r"conv_out32\.conv_out\.weight"):
            load_strict(build_base("sanet", 19), build_base("sanet-tiny", 19).state_dict())


class TestMistakes:
    """What an exporter or a rewrite gets wrong must move the logits far beyond the gate."""

    @pytest.mark.parametrize("mistake", ["square grids", "exact nearest", "no cube", "no one", "block order"])
    def test_sanet(self, sanet_case, monkeypatch, mistake):
        c = sanet_case
        interpolate, heads = F.interpolate, (sanet.SpatialContext, c.net.sce)
        if mistake == "square grids":
            monkeypatch.setattr(sanet, "context_grids", lambda h, w: [(n, n) for n in (6, 3, 2, 1)])
        elif mistake == "exact nearest":

            def nearest(x, **kw):
                kw["mode"] = kw["mode"].replace("nearest", "nearest-exact")
                return interpolate(x, **kw)

            monkeypatch.setattr(F, "interpolate", nearest)
        elif mistake == "no cube":
            monkeypatch.setattr(sanet.GeM, "forward", lambda self, x: self.avg_pool(x) + 1e-12)
        elif mistake == "no one":
            act = heads[1].spatial_attention[2]
            monkeypatch.setattr(act, "forward", lambda x: torch.sigmoid(x) - 1)
        else:

            def depth_first(x):
                n, k, h, w = x.shape
                y = x.reshape(n, 8, 8, k // 64, h, w).permute(0, 3, 4, 1, 5, 2)
                return y.reshape(n, k // 64, 8 * h, 8 * w)

            monkeypatch.setattr(c.net.conv_out32.up, "forward", depth_first)
        logits, _ = c.run(96, 160)
        error = np.abs(logits[:, :, ::8, ::8] - GOLDEN["sanet_c19"]).max() / c.facts["sizes"]["96x160"]["std"]
        assert error > 50 * GATE

    def test_stdc_padding_counts(self):
        c = Case("sfnet_stdc2")
        pools = [m for m in c.net.modules() if isinstance(m, nn.AvgPool2d)]
        assert len(pools) == 3
        for pool in pools:
            pool.count_include_pad = False
        logits, _ = c.run(96, 160)
        for pool in pools:
            pool.count_include_pad = True
        error = np.abs(logits[:, :, ::8, ::8] - GOLDEN["sfnet_stdc2"]).max() / c.facts["sizes"]["96x160"]["std"]
        assert error > 50 * GATE


def official_grid(flow):
    """As the authors write it: corners aligned, one unit of flow is 1/W (1/H) of the range -1..1."""
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack((x, y), 2)[None] + flow.permute(0, 2, 3, 1) / torch.tensor([width, height])


@pytest.mark.parametrize("source", [(1, 1), (1, 5), (3, 7), (24, 40)])
def test_warp_samples_where_the_official_grid_points(source):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, *source, generator=generator)
    flow = torch.randn(1, 2, 24, 40, generator=generator) * 9  # some points lie outside
    wanted = F.grid_sample(x, official_grid(flow), mode="bilinear", padding_mode="zeros", align_corners=True)
    torch.testing.assert_close(blocks.flow_warp(x, flow), wanted, rtol=0, atol=1e-4)


class TestHalfPrecision:
    """Sums and cubes that leave the range of float16 stay float32."""

    def test_cubic_mean(self):
        x = torch.tensor([1e-3, 80.0])[None, :, None, None].expand(1, 2, 4, 4)
        found = sanet.GeM()(x.half())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.flatten(), torch.tensor([1e-3, 80.0]), rtol=1e-3, atol=0)

    def test_cubic_mean_of_a_dead_channel(self):
        found = sanet.GeM()(torch.zeros(1, 1, 4, 4))
        assert float(found) == pytest.approx(1e-4, rel=1e-4)

    def test_warp(self):
        x = torch.randn(1, 2, 4, 600, generator=torch.Generator().manual_seed(0)).half()
        flow = torch.randn(1, 2, 4, 600, generator=torch.Generator().manual_seed(1)).half()
        found = blocks.flow_warp(x, flow)
        assert found.dtype == torch.float16
        exact = blocks.flow_warp(x.float(), flow.float())
        assert float((found.float() - exact).abs().max()) < 2e-3  # rounding of the result alone
        rounded = F.grid_sample(x.float(), official_grid(flow.float()).half().float(), align_corners=True)
        assert float((rounded - exact).abs().max()) > 0.05

    def test_reasoning(self):
        module = srnet.SqueezeReasoning(512).eval().half()
        x = torch.full((1, 512, 64, 64), 0.5).half()
        with torch.no_grad():
            for conv in (module.p, module.g):
                conv.weight.fill_(1 / 16)  # every product is 256, every sum 2**20
            module.conv_adj.weight.zero_()
            module.conv_wg.weight.zero_()
            assert bool(torch.isfinite(module.p(x)).all())
            seen = []
            module.conv_adj.register_forward_hook(lambda _, args, __: seen.append(args[0]))
            module(x * 0.1)
        assert seen[0].dtype == torch.float16
        assert float(seen[0].float().max()) == pytest.approx(64 * 64 * 1.6**2, rel=0.02)


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((16, 32), [(6, 12), (3, 6), (2, 4), (1, 2)]),
        ((23, 30), [(6, 8), (3, 4), (2, 3), (1, 1)]),
        ((2, 5), [(6, 15), (3, 8), (2, 5), (1, 2)]),  # 7.5 and 2.5: half to even
        ((40, 10), [(6, 2), (3, 1), (2, 1), (1, 1)]),  # 1.5 and 0.75, never none
    ],
)
def test_context_grids(size, grids):
    assert sanet.context_grids(*size) == grids
