"""SegRefiner's network against numbers of the official code, and the same network in the exported file.

The golden weights are made again from the keys: see fill_segrefiner. Only the 64 x 96 batch is kept as a file; all
time steps at 128 and one at 256 were compared by hand.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill  # noqa: E402

from crispseg.engines.spec import EngineSpec  # noqa: E402
from crispseg.engines.tensorrt.operators import RELEASES, unsupported  # noqa: E402
from crispseg.errors import BundleError, CheckpointError, EnvironmentMismatch, InputError  # noqa: E402
from crispseg.export.segrefiner import export_segrefiner  # noqa: E402
from crispseg.models.refiners.segrefiner import (  # noqa: E402
    MEAN,
    STD,
    SegRefiner,
    SegRefinerConfig,
    load_segrefiner,
    random_segrefiner,
)
from crispseg.runtime.mask_resize import nearest_index, paste_bilinear, resize_bilinear, resize_nearest  # noqa: E402

torch.set_num_threads(1)
DATA = Path(__file__).parents[1] / "data" / "segrefiner"
SMALL = SegRefinerConfig(channels=32)
SOBEL = {f"loss_texture.sobel.conv_{axis}.weight": torch.ones(1, 1, 3, 3) for axis in "xy"}


def key_facts():
    """key -> (shape, CRC-32 of the bytes)."""
    rows = [line.split() for line in (DATA / "keys.txt").read_text().splitlines()]
    return {key: (tuple(map(int, shape.split("x"))), int(crc)) for key, shape, crc in rows}


def fill_segrefiner(key, shape):
    if not key.endswith("time_embed.weight"):
        return fill.values(key, shape)
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return draw.normal(0, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    return random_segrefiner(3, SMALL)


@pytest.fixture(scope="module")
def small_onnx(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "unet.onnx"
    onnx.save(export_segrefiner(small, 64), str(path))
    return path


def inputs(count, side, t):
    rng = np.random.default_rng(count)
    image = rng.standard_normal((count, 4, side, side), np.float32)
    image[:, 3] = rng.random((count, side, side)) < 0.5
    return image, np.array(t, np.int64)


def test_official_logits():
    with torch.device("meta"):
        model = SegRefiner()
    facts = key_facts()
    own = model.state_dict()
    assert {key: tuple(value.shape) for key, value in own.items()} | {k: (1, 1, 3, 3) for k in SOBEL} == {
        key: shape for key, (shape, _) in facts.items()
    }
    assert sum(value.numel() for value in own.values()) == 118_604_673
    state = {key: fill_segrefiner(key, tuple(value.shape)) for key, value in own.items()}
    for key in ("denoise_model.time_embed.weight", "denoise_model.middle_block.1.qkv.weight"):
        assert zlib.crc32(state[key].tobytes()) == facts[key][1]  # the rule of the golden files
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, assign=True)
    golden = np.load(DATA / "unet_batch2_64x96.npz")
    picture = (torch.from_numpy(golden["img_rgb"]).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    mask = torch.from_numpy(np.unpackbits(golden["mask_bits"]).reshape(2, 1, 64, 96)).float()
    with torch.inference_mode():
        image = torch.cat([picture.permute(0, 3, 1, 2), mask], 1)
        logits = model.eval()(image, torch.from_numpy(golden["t"]))[:, 0].numpy()
    assert np.abs(logits - golden["logits"]).max() < 5e-5
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert np.abs(probability - 1 / (1 + np.exp(-golden["logits"].astype(np.float64)))).max() < 1e-5


@pytest.mark.parametrize("wrapper", ["bare", "module", "mmcv"])
def test_every_wrapper_of_a_checkpoint(small, tmp_path, wrapper):
    state = {**small.state_dict(), **SOBEL}
    if wrapper == "module":
        state = {f"module.{key}": value for key, value in state.items()}
    saved = state if wrapper == "bare" else {"meta": {"epoch": 3}, "state_dict": state, "optimizer": {}}
    torch.save(saved, tmp_path / "lr.pth")
    model, dropped = load_segrefiner(tmp_path / "lr.pth")
    assert model.config.channels == 32
    assert sorted(dropped) == sorted(SOBEL)
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in model.state_dict().items())


def test_other_checkpoints_are_refused_by_name(small, tmp_path):
    state = dict(small.state_dict())
    del state["denoise_model.out.2.bias"]
    torch.save({**state, "extra.weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"missing: denoise_model\.out\.2\.bias.*not expected: extra\.weight"):
        load_segrefiner(tmp_path / "a.pth")
    torch.save({"backbone.weight": torch.ones(3)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="LR or HR checkpoint"):
        load_segrefiner(tmp_path / "b.pth")


def test_the_exported_file_computes_the_same(small, small_onnx):
    session = onnxruntime.InferenceSession(str(small_onnx))
    for count, t in ((1, [5]), (3, [0, 2, 5])):  # dynamic batch, a time step for each picture
        image, steps = inputs(count, 64, t)
        with torch.inference_mode():
            wanted = small(torch.from_numpy(image), torch.from_numpy(steps)).numpy()
        found = session.run(["logits"], {"image": image, "t": steps})[0]
        assert found.shape == (count, 1, 64, 64)
        assert np.abs(found - wanted).max() < 2e-6 * max(1, np.abs(wanted).max())
    model = onnx.load(str(small_onnx))
    assert [entry.version for entry in model.opset_import] == [17]
    assert all(not unsupported(model, release) for release in RELEASES)
    assert not {"Shape", "Cast", "RandomUniform", "Loop", "If"} & {node.op_type for node in model.graph.node}


def test_export_refuses_sizes_between_the_strides(small):
    for size in (0, 48, 100, True):
        with pytest.raises(InputError, match="multiple of 32"):
            export_segrefiner(small, size)


def native_mask():
    from crispseg.engines import native_mask
    from crispseg.plugins import loader

    try:
        loader.load()
    except EnvironmentMismatch:
        pytest.skip("no native library")
    return native_mask


def test_the_native_engine_computes_the_same(small_onnx):
    session = onnxruntime.InferenceSession(str(small_onnx))
    engine = native_mask().load(small_onnx, EngineSpec("native", threads=1))
    kept = []
    for count, t in ((1, [4]), (2, [3, 3]), (3, [0, 2, 5])):
        image, steps = inputs(count, 64, t)
        found = engine.run({"image": image, "t": steps}, ["logits"])["logits"]
        wanted = session.run(["logits"], {"image": image, "t": steps})[0]
        assert np.abs(found - wanted).max() < 3e-6 * max(1, np.abs(wanted).max())
        kept.append((found, found.copy()))
    for found, copy in kept:  # a result must not be overwritten by the next call
        assert np.array_equal(found, copy)
    with pytest.raises(InputError, match="t: expected"):
        engine.run({"image": inputs(1, 64, [0])[0], "t": np.array([6])})
    with pytest.raises(InputError, match="image: expected"):
        engine.run({"image": np.zeros((1, 4, 32, 32), np.float32), "t": np.array([0])})
    engine.close()


def test_the_native_engine_refuses_other_files(small_onnx, tmp_path):
    engine = native_mask()
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(small_onnx.read_bytes()[:5000])
    model = onnx.load(str(small_onnx))
    renamed = tmp_path / "renamed.onnx"
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".table"):
            tensor.name += "s"
    onnx.save(model, str(renamed))
    for path in (damaged, renamed):
        with pytest.raises(BundleError, match="export it again"):
            engine.load(path, EngineSpec("native", threads=1))


@pytest.mark.parametrize(("given", "wanted"), [((7, 11), (64, 32)), ((90, 201), (64, 64)), ((1, 1), (4, 4))])
def test_resizing_is_pytorchs(given, wanted):
    array = np.random.default_rng(0).random((*given, 3), np.float32)
    tensor = torch.from_numpy(array.transpose(2, 0, 1)[None])
    for mode, found in (
        ("bilinear", resize_bilinear(array, *wanted)),
        ("nearest", resize_nearest(array, *wanted)),
    ):
        expected = torch.nn.functional.interpolate(tensor, wanted, mode=mode)[0].numpy().transpose(1, 2, 0)
        assert np.abs(found - expected).max() < 2e-6
    assert nearest_index(5, 3).tolist() == [0, 1, 3]


def test_pasting_is_grid_sample_with_zeros_around():
    patch, box = np.random.default_rng(1).random((16, 16), np.float32), (3, 5, 40, 28)
    x = (torch.arange(50) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(40) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
    sampled = torch.nn.functional.grid_sample(torch.from_numpy(patch)[None, None], grid, align_corners=False)[0, 0]
    found = paste_bilinear(patch, box)
    assert np.abs(found - sampled[box[1] : box[3], box[0] : box[2]].numpy()).max() < 2e-6
    outside = sampled.numpy().copy()
    outside[box[1] : box[3], box[0] : box[2]] = 0
    assert outside.max() < 0.5  # why pasting into the box alone is enough
