"""The refiner against numbers of the official code: keys, sites, maps, features, logits, labels."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill  # noqa: E402

from crispseg.errors import CheckpointError  # noqa: E402
from crispseg.models.checkpoints import load_checkpoint, load_strict  # noqa: E402
from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner  # noqa: E402
from crispseg.models.refiners.unet import Block, RowConv, RowNorm  # noqa: E402
from crispseg.sparse.ensemble import by_entropy, gated  # noqa: E402
from crispseg.sparse.maps import coords_of  # noqa: E402
from crispseg.sparse.rows import normalised  # noqa: E402
from crispseg.sparse.select import entropy, logits_at, upsample_logits  # noqa: E402

torch.set_num_threads(1)

CASES = ("a_64x96", "b_67x95", "c_allactive_32x32", "e_corners_64x96", "f_batch2_40x56")
YO, YE, FEATURES = 1e-5, 2e-5, 1e-5  # of the largest value; the official fp32 noise is 1e-6 and 4e-6
MARGIN = 1e-3  # of the largest logit: classes closer than this may swap in float32


def config(name, **changes):
    facts = fill.FACTS["configs"][name]
    return SparseRefineConfig(planes=tuple(facts["planes"]), repeats=tuple(facts["repeats"]), **changes)


@pytest.fixture(scope="module")
def small():
    return fill.load_into(SparseRefiner(config("small")))


@pytest.fixture(scope="module")
def default():
    return fill.load_into(SparseRefiner(config("default")))


def golden(name):
    return dict(np.load(fill.DATA / f"{name}.npz"))


def inputs(case):
    data = golden(f"inputs_{case}")
    low = torch.from_numpy(data["low_logits"].astype(np.float32)).permute(0, 3, 1, 2)
    width = data["rgb"].shape[2]
    data["mask"] = np.unpackbits(data["mask"], axis=-1)[..., :width].astype(bool)
    return torch.from_numpy(data["rgb"]), low, data


def relative(found, wanted):
    assert found.shape == wanted.shape
    if not wanted.size:
        return 0.0
    return float(np.abs(found - wanted).max() / (np.abs(wanted).max() or 1.0))


def run(net, case):
    image, logits, data = inputs(case)
    probes = {}
    with torch.no_grad():
        mask = net.select(image, logits)
        coords = coords_of(mask)
        x, yi = net.rows(image, logits, coords)
        size = tuple(image.shape[1:3])
        maps = net.maps(coords, size)
        yo, ye = net.forward_rows(x, yi, coords, size, maps, probe=lambda name, value: probes.update({name: value}))
        refined = net.refine(image, logits)
    assert torch.equal(refined.ye, ye)
    assert torch.equal(refined.yo, yo)
    assert np.array_equal(mask.numpy(), data["mask"])
    assert np.array_equal(coords.numpy(), data["coords"])
    return refined, maps, probes, logits


def check_labels(net, refined, logits, rows, wanted):
    found = net.labels(refined, logits, rows).numpy()
    assert found.dtype == np.uint8
    assert np.array_equal(found[~refined.mask.numpy()], wanted[~refined.mask.numpy()])
    b, y, x = refined.coords.numpy().T
    top = rows.topk(2, 1).values.numpy()
    clear = top[:, 0] - top[:, 1] > MARGIN * float(rows.abs().max())
    assert np.array_equal(found[b, y, x][clear], wanted[b, y, x][clear])
    assert clear.mean() > 0.9


def check_logits(net, refined, logits, wanted):
    assert relative(refined.yo.numpy(), wanted["yo"]) <= YO
    assert relative(refined.ye.numpy(), wanted["ye"]) <= YE
    check_labels(net, refined, logits, refined.ye, wanted["argmax_e"])
    check_labels(net, refined, logits, refined.yo, wanted["argmax_o"])
    check_labels(net, refined, logits, by_entropy(refined.yi, refined.yo), wanted["argmax_ent"])
    with torch.no_grad():
        gate = gated(refined.yi, refined.yo, *net.ensembler.weights())[1]
    assert float((gate - torch.from_numpy(wanted["gate"])).abs().max()) <= YE


@pytest.mark.parametrize("case", CASES)
def test_small_matches_official(small, case):
    wanted = golden(f"small_{case}")
    refined, maps, probes, logits = run(small, case)
    for level, here in enumerate(maps):
        if level:
            assert np.array_equal(here.coords.numpy(), wanted[f"coords_l{level}"])
        assert np.array_equal(here.same.numpy(), wanted[f"map_subm_l{level}"])
        if here.down is not None:
            assert np.array_equal(here.down.numpy(), wanted[f"map_down_l{level}"])
    names = {key[5:] for key in wanted if key.startswith("feat_")}
    assert names == set(probes)
    for name in names:
        assert relative(probes[name].numpy(), wanted[f"feat_{name}"]) <= FEATURES, name
    assert np.array_equal(refined.yi.numpy(), wanted["yi"])
    assert relative(by_entropy(refined.yi, refined.yo).numpy(), wanted["yent"]) <= YO
    check_logits(small, refined, logits, wanted)


@pytest.mark.parametrize("case", CASES[:3])
def test_default_matches_official(default, case):
    wanted = golden(f"default_{case}")
    refined, maps, _, logits = run(default, case)
    for level in range(1, 6):
        assert np.array_equal(maps[level].coords.numpy(), wanted[f"coords_l{level}"])
    assert [len(here.coords) for here in maps] == fill.FACTS["sites"][f"default_{case}"]
    check_logits(default, refined, logits, wanted)


@pytest.mark.parametrize("case", ["a_64x96", "b_67x95", "e_corners_64x96"])
def test_image_extent(small, case):
    wanted = golden(f"small_{case}_imageclip")
    clipped = SparseRefiner(replace(small.config, extent="image")).eval()
    clipped.load_state_dict(small.state_dict())
    refined, maps, _, _ = run(clipped, case)
    for level in (1, 2):
        assert np.array_equal(maps[level].coords.numpy(), wanted[f"coords_l{level}"])
    assert relative(refined.yo.numpy(), wanted["yo"]) <= YO
    assert relative(refined.ye.numpy(), wanted["ye"]) <= YE


def test_no_active_pixel(small):
    image, logits, _ = inputs("d_zeroactive_24x40")
    for net in (small, SparseRefiner(small.config).train()):
        refined = net.refine(image, logits)
        assert refined.coords.shape == (0, 3)
        assert refined.yo.shape == refined.ye.shape == (0, 19)
        assert np.array_equal(net.labels(refined, logits).numpy(), golden("small_d_zeroactive_24x40")["argmax"])
        assert torch.equal(net.full_logits(refined, logits), upsample_logits(logits, (24, 40)))
        (refined.ye.sum() + refined.yo.sum()).backward()


@pytest.mark.parametrize("site", [(0, 0), (63, 95), (17, 40)])
def test_one_active_pixel(small, site):
    image, logits, _ = inputs("a_64x96")
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[0, site[0], site[1]] = True
    refined = small.refine(image, logits, mask)
    assert refined.coords.tolist() == [[0, *site]]
    full = small.full_logits(refined, logits)
    assert torch.equal(full[0, :, site[0], site[1]], refined.ye[0])
    untouched = ~mask[:, None].expand_as(full)
    assert torch.equal(full[untouched], upsample_logits(logits, (64, 96))[untouched])
    trained = SparseRefiner(small.config).train()
    result = trained.refine(image, logits, mask)
    assert bool(torch.isfinite(result.ye).all())
    result.ye.sum().backward()


def test_images_of_a_batch_share_the_active_bound(small):
    """The official coupling near the border: the second image alone has fewer sites than in the batch."""
    image, logits, _ = inputs("f_batch2_40x56")
    together, alone = small.refine(image, logits), small.refine(image[1:], logits[1:])
    rows = together.coords[:, 0] == 1
    assert torch.equal(together.yi[rows], alone.yi)
    assert float((together.yo[rows] - alone.yo).detach().abs().max()) == pytest.approx(4.26, abs=0.01)


@pytest.mark.parametrize("name", ["small", "default"])
def test_keys_are_the_official_ones(name):
    facts = fill.FACTS["configs"][name]
    with torch.device("meta"):
        net = SparseRefiner(config(name))
    assert {key: tuple(v.shape) for key, v in net.state_dict().items()} == fill.parse_keys(facts["keys"])
    assert sum(p.numel() for p in net.parameters()) == facts["parameters"]
    with torch.device("meta"):
        learnable = SparseRefiner(config(name, selector="learnable"))
    extra = {key: tuple(v.shape) for key, v in learnable.state_dict().items() if key not in net.state_dict()}
    assert extra == fill.parse_keys(fill.FACTS["learnable_selector"]["keys"])


def levels(refiner):
    level = refiner.root
    while level is not None:
        yield level
        level = level.descent.below if level.descent is not None else None


def test_parts_can_be_walked_without_keys(small):
    seen = [small.stem, small.norm, small.classifier, *small.ensembler.attn, *small.ensembler.fuser]
    for level in levels(small):
        for block in (*level.encoder, *level.decoder):
            assert isinstance(block, Block)
            seen += [block.norm1, block.conv1, block.norm2, block.conv2, block.shortcut]
        below = level.descent
        if below is not None:
            seen += [below.norm_down, below.down, below.norm_up, below.up]
            assert isinstance(below.down, RowConv)
            assert isinstance(below.norm_up, RowNorm)
    reached = {id(p) for module in seen if module is not None for p in module.parameters()}
    assert reached == {id(p) for p in small.parameters()}
    wide = SparseRefiner(SparseRefineConfig(planes=(8, 16), repeats=3))
    assert [(len(level.encoder), len(level.decoder)) for level in levels(wide)] == [(3, 3), (3, 0)]


def test_data_path(small):
    image, logits, data = inputs("b_67x95")
    c = small.config
    assert relative(normalised(image, c.channel_order, c.mean, c.std).numpy(), data["image"]) <= 1e-6
    coords = torch.from_numpy(data["coords"].astype(np.int32))
    at_sites = logits_at(logits, coords, (67, 95))
    assert np.allclose(entropy(at_sites).numpy(), data["entropy_active"], rtol=0, atol=2e-6)


def test_learnable_selector():
    facts, wanted = fill.FACTS["learnable_selector"], golden("learnable_selector_a_64x96")
    net = fill.load_into(SparseRefiner(config("small", selector="learnable", threshold=facts["threshold"])))
    image, logits, _ = inputs("a_64x96")
    c = net.config
    with torch.no_grad():
        score = net.selector(normalised(image, c.channel_order, c.mean, c.std), upsample_logits(logits, (64, 96)))
    assert float((score - torch.from_numpy(wanted["prob"])).abs().max()) <= 1e-5
    mask = net.select(image, logits)
    assert np.array_equal(mask.numpy(), np.unpackbits(wanted["mask"], axis=-1)[..., :96].astype(bool))
    assert int(mask.sum()) == facts["active"]
    assert net.refine(image, logits).ye.shape == (facts["active"], 19)


def test_entropy_ensembler(small):
    net = SparseRefiner(replace(small.config, ensembler="entropy")).eval()
    load_strict(net, small.state_dict(), droppable=(r"ensembler\.",))
    refined, _, _, _ = run(net, "a_64x96")
    assert relative(refined.ye.numpy(), golden("small_a_64x96")["yent"]) <= YO


@pytest.mark.parametrize("features", [("rgb", "xy"), ("p", "rgb"), ("xy", "p>0.5", "p")])
def test_other_features(features):
    net = SparseRefiner(SparseRefineConfig(num_classes=5, planes=(4, 6), repeats=1, features=features)).eval()
    image = torch.randint(0, 256, (2, 12, 14, 3), dtype=torch.uint8)
    refined = net.refine(image, torch.randn(2, 5, 6, 7))
    assert refined.ye.shape == (int(refined.mask.sum()), 5)


def test_official_checkpoint_round_trip(small, tmp_path):
    path = tmp_path / "official.ckpt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in small.state_dict().items()}, "epoch": 1}, path)
    net = SparseRefiner(small.config)
    load_strict(net, load_checkpoint(path))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), small.state_dict().values()))
    with pytest.raises(CheckpointError, match="of another shape"):
        load_strict(SparseRefiner(replace(small.config, num_classes=11)), load_checkpoint(path))
    with pytest.raises(CheckpointError, match="missing"):
        load_strict(SparseRefiner(replace(small.config, selector="learnable")), load_checkpoint(path))


def test_fill_rule_is_the_one_of_the_golden_files():
    facts = fill.FACTS["configs"]["small"]
    digest = hashlib.sha256()
    for key, shape in fill.parse_keys(facts["keys"]).items():
        digest.update(fill.values(key, shape).tobytes())
    assert digest.hexdigest() == facts["fill_sha256"]


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    net = SparseRefiner(SparseRefineConfig(num_classes=3, planes=(8, 12), repeats=1)).train()
    image = torch.randint(0, 256, (2, 24, 32, 3), dtype=torch.uint8)
    target = image[..., 0].long() * 3 // 256  # a class that the colours give away
    logits, mask = torch.zeros(2, 3, 12, 16), torch.rand(2, 24, 32) < 0.4
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        refined = net.refine(image, logits, mask)
        loss = torch.nn.functional.cross_entropy(refined.ye, target[mask])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"planes": ()},
        {"planes": (8, 16), "repeats": (1,)},
        {"num_classes": 1},
        {"num_classes": 300},
        {"features": ("hsv",)},
        {"features": ()},
        {"extent": "frame"},
        {"ensembler": "mean"},
        {"selector": "edge"},
        {"upsample": "cubic"},
        {"channel_order": "gbr"},
        {"std": (1.0, 0.0, 1.0)},
    ],
)
def test_config_is_checked(changes):
    with pytest.raises(ValueError, match="expected"):
        SparseRefineConfig(**changes)


def test_wrong_shapes_are_refused(small):
    image, logits, _ = inputs("a_64x96")
    with pytest.raises(ValueError, match="logits"):
        small.refine(image, logits[:, :11])
    with pytest.raises(ValueError, match="image"):
        small.refine(image.float(), logits)
    with pytest.raises(ValueError, match="mask"):
        small.refine(image, logits, torch.ones(1, 32, 48, dtype=torch.bool))
