"""CRM at run time: tables, tiles, turns; against numbers of the official code and against PyTorch."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_crm  # noqa: E402

from crispseg.bundle_masks import CrmInfo, write_mask_bundle  # noqa: E402
from crispseg.cli import main  # noqa: E402
from crispseg.errors import BundleError, InputError  # noqa: E402
from crispseg.models.refiners import crm as network  # noqa: E402
from crispseg.runtime import crm_tables, crm_tiles  # noqa: E402
from crispseg.runtime.crm import TILE_AREA, open_crm, refine  # noqa: E402
from crispseg.runtime.mask_run import refine as run_refine  # noqa: E402

torch.set_num_threads(1)
INFO = CrmInfo(
    backbone="backbone.onnx",
    fusion="fusion.onnx",
    decoder="decoder.onnx",
    block=(64, 128),
    scales=(0.125, 0.25, 0.5, 1.0),
    border=32,
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
)
SIZES = [1, 2, 7, 12, 13, 65, 94, 187, 1056, 3032]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from crispseg.export.crm import crm_graphs

    files = {name: graph.SerializeToString() for name, graph in crm_graphs(fill_crm.model()).items()}
    return write_mask_bundle(tmp_path_factory.mktemp("crm") / "b", name="crm", refiner=INFO, files=files)


def at_scales(bundle, *scales):
    return dataclasses.replace(bundle, refiner=dataclasses.replace(bundle.refiner, scales=scales))


@pytest.fixture(scope="module")
def engine(bundle):
    with open_crm(bundle, threads=1) as opened:
        yield opened


def scene(height, width, seed=0):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    mask = np.zeros((height, width), np.float32)
    mask[height // 4 : -(height // 4), width // 5 : -(width // 3)] = 1
    return image, mask


@pytest.mark.parametrize("cells", SIZES)
@pytest.mark.parametrize("queries", [1, 64, 187, 2112])
def test_reads_are_those_of_grid_sample(cells, queries):
    points = crm_tables.cell_centres(queries)
    assert np.array_equal(points, network.cell_centres(queries).numpy())
    found, relative = crm_tables.shifted_reads(points, cells)
    numbers = torch.arange(cells, dtype=torch.float32)[None, None, None]
    for row, sign in enumerate((-1, 1)):
        shifted = (torch.from_numpy(points) + (sign / cells + 1e-6)).clamp(-1 + 1e-6, 1 - 1e-6)
        grid = torch.stack([shifted, torch.zeros(queries)], dim=-1)[None, None]
        wanted = F.grid_sample(numbers, grid, mode="nearest", align_corners=False).numpy().ravel()
        assert np.array_equal(found[row], wanted)
    assert np.abs(relative).max() <= 2.001


@pytest.mark.parametrize("target", [1, 47, 94, 187])
@pytest.mark.parametrize("source", [1, 13, 187])
def test_resize_is_that_of_torch(source, target):
    values = np.random.default_rng(0).random(source).astype(np.float32)
    lower, upper, weight = crm_tables.aligned(source, target)
    found = values[lower] * (1 - weight) + values[upper] * weight
    wanted = F.interpolate(torch.from_numpy(values)[None, None, None], (1, target), mode="bilinear", align_corners=True)
    np.testing.assert_allclose(found, wanted.numpy().ravel(), atol=2e-7)


def test_interpolation_matrices_join():
    """Any window of the matrix is that part of the whole; outside the map it is 0."""
    axis = crm_tables.Axis(700, 1.0)
    count = axis.cells[0]
    whole = axis.matrix((0, count), 1, (0, axis.cells[2]))
    unit = F.interpolate(
        torch.eye(axis.cells[2])[None, None], (count, axis.cells[2]), mode="bilinear", align_corners=True
    )
    np.testing.assert_allclose(whole[1:-1], unit[0, 0], atol=2e-6)
    assert not whole[0].any()
    assert not whole[-1].any()
    cells = (100, 131)
    sources = axis.sources(axis.with_border(cells), 1)
    assert np.array_equal(axis.matrix(cells, 1, sources), whole[100:133, slice(*sources)])


def test_reach_of_the_backbone_is_what_the_windows_allow_for():
    """The first pixel that cannot matter does not; a strip one pixel shorter would be wrong."""
    net = fill_crm.model()
    picture = torch.randn(1, 4, 8, 320, generator=torch.Generator().manual_seed(0))
    reaches = (crm_tables.REACH_FIRST, crm_tables.REACH_SECOND, crm_tables.REACH_THIRD)
    with torch.no_grad():
        whole = net.feats(picture)
        for level, (reach, stride) in enumerate(zip(reaches, (2, 4, 8), strict=True)):
            cell = 160 // stride
            for distance, equal in ((reach + 1, True), (reach, False)):
                changed = picture.clone()
                changed[..., : 160 - distance + 1] += 50.0
                same = torch.equal(net.feats(changed)[level][..., cell], whole[level][..., cell])
                assert same == equal, (level, distance)


@pytest.mark.parametrize("size", [(6064, 6064), (2112, 2112), (1000, 9000)])
@pytest.mark.parametrize("scale", [0.125, 0.5, 1.0])
def test_plan_covers_the_picture_within_the_area(size, scale):
    axes = [crm_tables.Axis(side, scale) for side in size]
    ranges = crm_tiles.plan(*axes, (64, 128), TILE_AREA)
    pixels = 0
    for axis, parts in zip(axes, ranges, strict=True):
        assert [a for a, _ in parts] == [0] + [b for _, b in parts[:-1]]
        assert parts[-1][1] == axis.queries
    for y in ranges[0]:
        for x in ranges[1]:
            (a, b), (c, d) = axes[0].window(*y), axes[1].window(*x)
            assert a % 8 == c % 8 == 0
            assert (b - a) * (d - c) <= TILE_AREA
            pixels += (b - a) * (d - c)
    assert pixels <= 1.4 * axes[0].size * axes[1].size


def test_turns_are_the_official_ones(engine):
    g = np.load(fill_crm.DATA / "inference_89x123.npz")
    found = np.stack(engine.turns(g["img_rgb"], g["seg_u8"] / np.float32(255), keep=True))
    np.testing.assert_allclose(found[:, 1::3, 1::3], g["prob_step3"][:, 11:41, 11:52], atol=1e-5, rtol=0)
    assert np.abs((255 * found).astype(np.uint8).astype(int) - g["out_mask_u8"]).max() <= 1
    assert np.array_equal((found > 0.5) * 255, g["out_01mask_u8"])
    assert [[crm_tables.Axis(n, s).size for n in (153, 187)] for s in INFO.scales] == g["scaled_hw"].tolist()


def test_scaled_picture_is_the_official_one():
    g = np.load(fill_crm.DATA / "inference_89x123.npz")
    axes = tuple(crm_tables.Axis(n + 64, 0.25) for n in (89, 123))
    reflect = tuple(crm_tables.reflected(n, 32) for n in (89, 123))
    mask = (g["seg_u8"] / np.float32(255))[np.ix_(*reflect)]
    colours = (np.float32(INFO.mean), np.float32(INFO.std))
    found = crm_tiles.picture_window(g["img_rgb"], mask, axes, reflect, ((8, 30), (0, 47)), *colours)[0]
    np.testing.assert_allclose(found[:3], g["scaled_im_025"][:, 8:30], atol=2e-6)
    whole = torch.from_numpy(mask * 2 - 1)[None, None]
    wanted = F.interpolate(whole, (38, 47), mode="bilinear", align_corners=True)[0, 0, 8:30]
    np.testing.assert_allclose(found[3], wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(20, 50), (33, 65), (1, 1)])
def test_small_pictures(engine, size):
    """Sides of 32 px and less, which the published code refuses: the border is reflected again and again."""
    image, mask = scene(*size)
    mask[:] = np.linspace(0, 1, mask.size, dtype=np.float32).reshape(size) if mask.size > 1 else 1
    with torch.no_grad():
        wanted = network.refine_reference(fill_crm.model(), torch.from_numpy(image.copy()), torch.from_numpy(mask))
    found = engine.turns(image, mask, keep=True)
    np.testing.assert_allclose(np.stack(found), wanted, atol=1e-5)


def test_tiles_change_nothing(bundle):
    image, mask = scene(460, 100)
    one = at_scales(bundle, 1.0)
    with open_crm(one, threads=1) as whole, open_crm(one, threads=1, tile_area=78_000) as tiled:
        calls = []
        run = tiled._networks["backbone"].run
        tiled._networks["backbone"].run = lambda inputs: calls.append(inputs["picture"].shape) or run(inputs)
        wanted, found = (refine(e, image, mask) for e in (whole, tiled))
    assert len(calls) > 1
    assert max(h * w for _, _, h, w in calls) <= 78_000
    assert wanted.std() > 0.003
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_empty_full_and_grey_masks(engine):
    image, _ = scene(40, 36)
    assert not engine.refine(image, np.zeros((40, 36), np.float32)).any()
    faint = np.zeros((70, 80), np.float32)
    faint[35, 40] = 0.9  # sums to less than one pixel: counts as empty
    assert not engine.refine(scene(70, 80)[0], faint).any()
    full = engine.refine(image, np.ones((40, 36), np.float32))
    half = engine.refine(image, np.full((40, 36), 0.5, np.float32))
    assert np.isfinite(full).all()
    assert full.min() > 0
    assert full.max() <= 1
    assert np.abs(full - half).max() > 1e-4  # grey levels count


def test_progress_reaches_the_end(engine):
    image, mask = scene(40, 36)
    seen = []
    refine(engine, image, mask, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.float32), r"uint8 \[H,W,3\]"),
        (np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.float32), "float32"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.float32), "5x4, found 4x5"),
        (np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 255, np.uint8), "0 to 1"),
        (np.zeros((4, 5, 3), np.uint8), np.full((4, 5), np.nan, np.float32), "0 to 1"),
    ],
)
def test_wrong_input_is_named(engine, image, mask, words):
    with pytest.raises(InputError, match=words):
        engine.refine(image, mask)


def test_networks_that_do_not_fit_are_refused(bundle, tmp_path):
    files = {name: bundle.file(name) for name in INFO.networks}
    swapped = dataclasses.replace(INFO, backbone=INFO.fusion, fusion=INFO.backbone)
    made = write_mask_bundle(tmp_path / "a", name="crm", refiner=swapped, files=files)
    with pytest.raises(BundleError, match="expected inputs picture"):
        open_crm(made)
    made = write_mask_bundle(
        tmp_path / "b", name="crm", refiner=dataclasses.replace(INFO, block=(32, 128)), files=files
    )
    with pytest.raises(BundleError, match=r"blocks of \[32, 128\] queries, found \[64, 128\]"):
        open_crm(made)


def test_refine_command(bundle, engine, tmp_path):
    """A photo with EXIF orientation and a grey RGBA mask: the mask belongs to the upright photo."""
    image, mask = scene(48, 70)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    Image.fromarray(np.rot90(image).copy()).save(tmp_path / "photo.png", exif=exif)
    grey = (mask * 200).astype(np.uint8)
    Image.merge("RGBA", [Image.fromarray(grey)] * 3 + [Image.new("L", (70, 48), 255)]).save(tmp_path / "mask.png")
    command = ["refine", str(bundle.path), str(tmp_path / "photo.png"), str(tmp_path / "mask.png")]
    seen = []
    run_refine(bundle, *command[2:], tmp_path / "out", progress=lambda done, total, text="": seen.append(done))
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == 1
    assert main([*command, "-o", str(tmp_path / "out"), "--threads", "1", "--json"]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "masks" / "photo.png"))
    wanted = engine.refine(image, grey / np.float32(255)) > 0.5
    assert np.array_equal(found, wanted * np.uint8(255))
