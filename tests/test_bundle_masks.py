from __future__ import annotations

import dataclasses
import json

import pytest

from crispseg.bundle import MANIFEST, load_bundle
from crispseg.bundle_masks import (
    CrmInfo,
    SegRefinerInfo,
    is_mask_bundle,
    load_mask_bundle,
    mask_bundle_hash,
    write_mask_bundle,
)
from crispseg.errors import BundleError, InputError

SEG = SegRefinerInfo(
    "unet.onnx", "instance", 64, (0.8, 0.64, 0.48, 0.32, 0.16, 0.0), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
)
CRM = CrmInfo(
    "backbone.onnx", "fusion.onnx", "decoder.onnx", (64, 128), (0.125, 0.25, 0.5, 1.0), 32, (123.7, 116.3, 103.5),
    (58.4, 57.1, 57.4),
)  # fmt: skip


def make(target, info=SEG):
    return write_mask_bundle(
        target, name="toy", refiner=info, files={name: name.encode() for name in info.networks}, provenance={"a": 1}
    )


def edit(bundle, change):
    path = bundle.path / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("info", [SEG, CRM], ids=["segrefiner", "crm"])
def test_round_trip(tmp_path, info):
    made = make(tmp_path / "b", info)
    again = load_mask_bundle(str(made.path))
    assert again == made
    assert again.refiner == info
    assert again.kind == ("segrefiner" if info is SEG else "crm")
    assert again.provenance == {"a": 1}
    assert is_mask_bundle(made.path)
    elsewhere = make(tmp_path / "c", info)
    assert mask_bundle_hash(elsewhere) == mask_bundle_hash(made)
    other = make(tmp_path / "d", dataclasses.replace(info, random_weights=True))
    assert mask_bundle_hash(other) != mask_bundle_hash(made)


def test_the_two_sorts_of_bundle_name_each_other(tmp_path):
    made = make(tmp_path / "b")
    with pytest.raises(BundleError, match="use `crispseg refine`"):
        load_bundle(made.path)
    edit(made, lambda data: data.pop("kind"))
    with pytest.raises(BundleError, match="use `crispseg run`"):
        load_mask_bundle(made.path)
    assert not is_mask_bundle(made.path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema=2), "schema 1"),
        (lambda d: d.update(kind="base"), "kind"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["refiner"].update(kind="pointrend"), "refiner.kind"),
        (lambda d: d.update(refiner=[]), "refiner.kind"),
        (lambda d: d["refiner"].update(size=100), "multiple of 32"),
        (lambda d: d["refiner"].update(size=True), "refiner.size"),
        (lambda d: d["refiner"].update(mode="video"), "refiner.mode"),
        (lambda d: d["refiner"].update(batch=0), "refiner.batch"),
        (lambda d: d["refiner"].update(fine_left=[0.8, 0.9, 0.0]), "fall to 0"),
        (lambda d: d["refiner"].update(fine_left=[0.8, 0.1]), "fall to 0"),
        (lambda d: d["refiner"].update(std=[1.0, 0.0, 1.0]), "refiner.std"),
        (lambda d: d["refiner"].update(file="../unet.onnx"), "plain file name"),
        (lambda d: d["refiner"].update(file="other.onnx"), "not listed"),
        (lambda d: d["files"]["unet.onnx"].update(bytes=3), "altered"),
        (lambda d: d["files"]["unet.onnx"].update(sha256="0" * 64), "SHA-256"),
        (lambda d: d.update(provenance=3), "provenance"),
    ],
)
def test_a_bad_manifest_is_refused_by_name(tmp_path, change, words):
    made = make(tmp_path / "b")
    edit(made, change)
    with pytest.raises(BundleError, match=words):
        load_mask_bundle(made.path)


def test_writing_refuses_other_places_and_leaves_no_partial_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="existing bundle"):
        make(tmp_path / "folder")
    with pytest.raises(BundleError, match="multiple of 32"):
        make(tmp_path / "b", dataclasses.replace(SEG, size=33))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
