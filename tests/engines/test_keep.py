"""Engines of a bundle that is written again in place: which stay, which go, and that an error changes nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from crispseg.engines import cache
from crispseg.engines.keep import ASIDE, rewrite
from crispseg.errors import InputError

OLD, NEW = {"refiner.onnx": "1" * 64, "refiner.int8.onnx": "2" * 64}, {"refiner.onnx": "1" * 64}


def bundle(path, files):
    return SimpleNamespace(path=path, files={name: SimpleNamespace(sha256=sha) for name, sha in files.items()})


def engine(path, file, precision="fp32"):
    identity = cache.Identity("native", "refiner", {file: OLD[file]}, {"precision": precision}, {"isa": "avx2"})
    return cache.store(path, identity, {"weights.bin": precision.encode()})


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "b"
    path.mkdir()
    (path / "bundle.json").write_text("old")
    return path


def replace(path, files):
    """As write_bundle does: nothing of the old directory is left."""

    def write():
        for item in path.iterdir():
            item.unlink()
        (path / "bundle.json").write_text("new")
        return bundle(path, files)

    return write


def test_engines_of_the_same_files_stay(target):
    kept, gone = engine(target, "refiner.onnx"), engine(target, "refiner.int8.onnx", "int8")
    (target / "engines" / "timing.cache").write_bytes(b"times")
    (target / "engines" / "half.1.partial").mkdir()
    made, number, removed = rewrite(target, replace(target, {**NEW, "refiner.int8.onnx": "3" * 64}))
    assert (target / "bundle.json").read_text() == "new"
    assert made.path == target
    assert number == 1
    (text,) = removed
    assert "int8" in text
    assert "`crispseg build %s --backend native --precision int8`" % target in text
    assert cache.load(kept.path).read("weights.bin") == b"fp32"
    assert not gone.path.exists()
    assert sorted(item.name for item in (target / "engines").iterdir()) == sorted([kept.path.name, "timing.cache"])
    assert not target.with_name("b" + ASIDE).exists()


def test_the_same_files_keep_everything(target):
    engine(target, "refiner.onnx")
    engine(target, "refiner.int8.onnx", "int8")
    assert rewrite(target, replace(target, OLD))[1:] == (2, [])


def test_damaged_ones_go_without_a_word(target):
    artefact = engine(target, "refiner.onnx")
    (artefact.path / cache.MANIFEST).write_text(json.dumps({"schema": 1}))
    assert rewrite(target, replace(target, OLD))[1:] == (0, [])
    assert not artefact.path.exists()


def test_an_error_leaves_them(target):
    artefact = engine(target, "refiner.onnx")

    def fail():
        assert not artefact.path.exists()
        raise InputError("no room")

    with pytest.raises(InputError, match="no room"):
        rewrite(target, fail)
    assert artefact.read("weights.bin") == b"fp32"


def test_a_new_place_has_none(tmp_path):
    target = tmp_path / "new"
    assert rewrite(target, lambda: bundle(target, OLD))[1:] == (0, [])
    assert not target.exists()


def test_what_a_killed_run_left_is_replaced(target):
    target.with_name("b" + ASIDE).mkdir()
    artefact = engine(target, "refiner.onnx")
    assert rewrite(target, replace(target, OLD))[1] == 1
    assert artefact.path.exists()


def test_what_a_killed_run_left_is_taken_up(target):
    artefact = engine(target, "refiner.onnx")
    (target / "engines").rename(target.with_name("b" + ASIDE))
    assert rewrite(target, replace(target, OLD))[1:] == (1, [])
    assert artefact.read("weights.bin") == b"fp32"
    assert not target.with_name("b" + ASIDE).exists()
