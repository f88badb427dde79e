"""CRM in PyTorch against numbers of the official code, whose weights are made again from their names."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_crm  # noqa: E402

from crispseg.errors import CheckpointError  # noqa: E402
from crispseg.models.refiners import crm  # noqa: E402

torch.set_num_threads(1)
GATE = 1e-5  # float32 noise is 1e-6; the maps of the encoder reach 5, so theirs is in proportion


def golden(name):
    return np.load(fill_crm.DATA / name)


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def net():
    return fill_crm.model()


@pytest.fixture(scope="module")
def features(net):
    g = golden("encoder_128x192.npz")
    x = crm.normalise(torch.from_numpy(g["img_rgb"]), torch.from_numpy(g["seg_u8"]) / 255.0)
    first, second, third = net.feats(x)
    return {"bn1": first, "layer1": second, "layer3": third, "feat": net.encode(x)}


def test_weights_are_those_of_the_golden_files():
    for key, (shape, crc) in fill_crm.keys().items():
        if ".layer4." not in key:
            assert zlib.crc32(np.ascontiguousarray(fill_crm.values(key, shape)).tobytes()) == crc, key


def test_official_checkpoint_loads_and_names_the_unused_stage(tmp_path, net):
    torch.save(fill_crm.state(), tmp_path / "model_45705")
    loaded, dropped = crm.load_crm(tmp_path / "model_45705")
    assert len(dropped) == 60
    assert all(key.startswith("feats.layer4.") for key in dropped)
    assert sum(p.numel() for p in loaded.parameters()) == 24_265_697 - 14_964_736
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("imnet.layers.0.bias"), "missing: imnet.layers.0.bias"),
        (lambda s: s.update({"aspp_.psp.weight": torch.zeros(1)}), "not expected: aspp_.psp.weight"),
        (lambda s: s.update({"feats.conv1.weight": torch.zeros(64, 3, 7, 7)}), r"expected \[64, 4, 7, 7\]"),
        (lambda s: s["imnet.layers.8.bias"].fill_(float("nan")), "not finite: imnet.layers.8.bias"),
    ],
)
def test_wrong_checkpoints_are_refused(change, words):
    state = {key[len("module.") :]: value.clone() for key, value in fill_crm.state().items() if ".layer4." not in key}
    change(state)
    with pytest.raises(CheckpointError, match=words):
        crm.load_crm(state)


@pytest.mark.parametrize("tap", ["bn1", "layer1", "layer3", "feat"])
def test_inner_maps(features, tap):
    g = golden("encoder_128x192.npz")
    index = list(g["tap_name"]).index(tap)
    found = features[tap].numpy()
    assert list(found.shape) == list(g["tap_shape"][index])
    wanted = g["tap_value"][index]
    np.testing.assert_allclose(found.ravel()[g["tap_flat_index"][index]], wanted, atol=GATE, rtol=0)
    np.testing.assert_allclose(
        [found.mean(), found.std(), np.abs(found).max()], g["tap_mean_std_absmax"][index], rtol=1e-4
    )


def test_feature_map(features):
    g = golden("encoder_128x192.npz")
    found = features["feat"][0].numpy()
    np.testing.assert_allclose(found[::16, ::4, ::4], g["feat_sub_c16_y4_x4"], atol=GATE, rtol=0)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), g["feat_channel_mean"], atol=GATE)


def test_queries_of_a_picture(net, features):
    points, cell = crm.query_grid(128, 192)
    found = net.query(features["feat"], points, cell).reshape(128, 192)
    np.testing.assert_allclose(found[::2, ::2], golden("query_128x192.npz")["logits_step2"], atol=GATE, rtol=0)


def test_decoder_alone(net):
    g = golden("decoder.npz")
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(b"crm.decoder.feat")))
    features = torch.from_numpy(draw.standard_normal(tuple(g["feat_shape"])).astype(np.float32))
    assert zlib.crc32(features.numpy().tobytes()) == g["feat_crc"]
    points, cell = crm.query_grid(*(int(n) for n in g["grid_hw"]))
    np.testing.assert_allclose(net.query(features, points, cell).reshape(40, 52), g["grid_logits"], atol=GATE, rtol=0)
    free = net.query(features, torch.from_numpy(g["points"]), torch.from_numpy(g["cells"]))
    np.testing.assert_allclose(free, g["point_logits"], atol=GATE, rtol=0)


def test_inference_in_four_turns(net):
    g = golden("inference_89x123.npz")
    found = crm.refine_reference(net, torch.from_numpy(g["img_rgb"]), torch.from_numpy(g["seg_u8"]) / 255.0).numpy()
    # The goldens hold every third place of the bordered picture: the first one inside is 33.
    np.testing.assert_allclose(found[:, 1::3, 1::3], g["prob_step3"][:, 11:41, 11:52], atol=GATE, rtol=0)
    saved = (255 * found).astype(np.uint8)
    assert np.abs(saved.astype(int) - g["out_mask_u8"]).max() <= 1
    assert np.array_equal((found > 0.5) * 255, g["out_01mask_u8"])


def test_an_empty_mask_stays_empty(net):
    found = crm.refine_reference(net, torch.zeros(70, 64, 3, dtype=torch.uint8), torch.zeros(70, 64))
    assert found.abs().max() == 0


def test_projection_is_the_feature_part_of_the_first_layer(net, features):
    layer = net.imnet.linear[0]
    found = net.project(features["feat"])[0, :, 5, 7]
    wanted = layer(torch.cat([features["feat"][0, :, 5, 7], torch.zeros(6)]))
    np.testing.assert_allclose(found, wanted, atol=GATE)
