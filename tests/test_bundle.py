from __future__ import annotations

import copy
import dataclasses
import json
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crispseg.bundle import MANIFEST, NetInfo, RefinerInfo, bundle_hash, load_bundle, write_bundle
from crispseg.classes import CAMVID, CITYSCAPES, ClassInfo, load_classes
from crispseg.errors import BundleError, InputError

BASE = NetInfo(
    "base.onnx", "toy", 24, 32, "rgb", (1.0, 2.0, 3.0), (4.0, 5.0, 6.5), "antialias", 6, 8, "bilinear", False
)
REFINER = RefinerInfo(
    "refiner.onnx", "sparserefine", 1, (8, 16), (1, 1), ("rgb", "p>0.5"), "active", "gated", "nearest", 0.3, 500, False
)


def make(target, **changes):
    arguments = {
        "name": "toy",
        "height": 48,
        "width": 64,
        "classes": CAMVID,
        "base": BASE,
        "baseline": None,
        "refiner": REFINER,
        "provenance": {"tool": "test", "list": [1, 2.5, None]},
        "files": {"base.onnx": b"base" * 100, "refiner.onnx": b"refiner" * 50},
    }
    arguments.update(changes)
    return write_bundle(target, **arguments)


@pytest.fixture
def bundle(tmp_path):
    return make(tmp_path / "b")


def edit(bundle, change):
    path = bundle.path / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_round_trip(bundle, tmp_path):
    again = load_bundle(str(bundle.path))
    assert again == bundle
    assert again.base == BASE
    assert again.refiner == REFINER
    assert again.classes == CAMVID
    assert again.files["base.onnx"].bytes == 400
    assert again.provenance["list"] == [1, 2.5, None]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]
    assert bundle_hash(make(tmp_path / "elsewhere")) == bundle_hash(bundle)
    assert bundle_hash(make(tmp_path / "other", files={"base.onnx": b"x", "refiner.onnx": b"y"})) != bundle_hash(bundle)


def test_path_content_and_replacing(tmp_path):
    source = tmp_path / "weights"
    source.write_bytes(b"abc")
    first = make(tmp_path / "b", files={"base.onnx": source, "refiner.onnx": b""})
    assert (first.path / "base.onnx").read_bytes() == b"abc"
    second = make(tmp_path / "b", refiner=None, files={"base.onnx": b"new"})
    assert second.refiner is None
    assert not (second.path / "refiner.onnx").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "weights"]


def test_refuses_what_is_not_a_bundle(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="existing bundle"):
        make(tmp_path / "b")
    assert (tmp_path / "b" / "precious.txt").read_text() == "x"


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"base.onnx": b""}},
        {"files": {"../base.onnx": b"", "base.onnx": b"", "refiner.onnx": b""}},
        {"base": dataclasses.replace(BASE, height=0)},
        {"base": dataclasses.replace(BASE, std=(0.0, 1.0, 1.0))},
        {"base": dataclasses.replace(BASE, mean=(float("nan"), 1.0, 1.0))},
        {"refiner": dataclasses.replace(REFINER, repeats=(1,))},
        {"refiner": dataclasses.replace(REFINER, capacity=48 * 64 + 1)},
        {"classes": (ClassInfo("a", (0, 0, 0)), ClassInfo("b", (0, 0, 0)))},
        {"provenance": {"x": object()}},
        {"height": 70000},
    ],
)
def test_bad_content_leaves_nothing(tmp_path, changes):
    good = make(tmp_path / "b")
    with pytest.raises(BundleError):
        make(tmp_path / "b", **changes)
    assert load_bundle(tmp_path / "b") == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_missing_source_file_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        make(tmp_path / "b", files={"base.onnx": tmp_path / "none", "refiner.onnx": b""})
    assert list(tmp_path.iterdir()) == []


def test_missing(tmp_path, bundle):
    with pytest.raises(BundleError, match="found nothing"):
        load_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match="found a file"):
        load_bundle(bundle.path / MANIFEST)
    with pytest.raises(BundleError, match="found none"):
        load_bundle(tmp_path)
    (bundle.path / "refiner.onnx").unlink()
    with pytest.raises(BundleError, match=r"refiner\.onnx, found none"):
        load_bundle(bundle.path)


def test_truncated_and_tampered(bundle):
    path = bundle.path / "base.onnx"
    path.write_bytes(b"base" * 99)
    with pytest.raises(BundleError, match="expected 400 bytes, found 396"):
        load_bundle(bundle.path, verify=False)
    path.write_bytes(b"Base" * 100)
    load_bundle(bundle.path, verify=False)
    with pytest.raises(BundleError, match="SHA-256"):
        load_bundle(bundle.path)


def test_truncated_manifest(bundle):
    raw = (bundle.path / MANIFEST).read_bytes()
    for length in (0, 1, len(raw) // 2, len(raw) - 3):
        (bundle.path / MANIFEST).write_bytes(raw[:length])
        with pytest.raises(BundleError, match="JSON"):
            load_bundle(bundle.path)


@pytest.mark.parametrize("value", [0, 2, "1", None, [], 1.5])
def test_wrong_schema(bundle, value):
    edit(bundle, lambda d: d.update(schema=value))
    with pytest.raises(BundleError, match="expected schema 1, found"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    "name",
    ["../base.onnx", "/etc/passwd", "a/b", "..", ".hidden", "", "a\x00b", "bundle.json", "c:\\x", "x" * 101, 7, None],
)
def test_file_names_stay_inside(bundle, name):
    edit(bundle, lambda d: d["base"].update(file=name))
    with pytest.raises(BundleError):
        load_bundle(bundle.path)


def test_file_names_in_files(bundle):
    edit(bundle, lambda d: d["files"].update({"../../x": d["files"]["base.onnx"]}))
    with pytest.raises(BundleError, match="plain file name"):
        load_bundle(bundle.path)


def test_symlink(bundle, tmp_path):
    path = bundle.path / "base.onnx"
    os.rename(str(path), str(tmp_path / "outside"))
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="symbolic link"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(height=10**30), "height"),
        (lambda d: d.update(height=16384, width=16384), "pixels"),
        (lambda d: d.update(height=True), "height"),
        (lambda d: d["files"]["base.onnx"].update(bytes=1 << 60), "bytes"),
        (lambda d: d["files"]["base.onnx"].update(sha256="A" * 64), "hex"),
        (lambda d: d["base"].update(extra=1), "unknown field extra"),
        (lambda d: d["base"].pop("mean"), "missing field mean"),
        (lambda d: d["base"].update(channel_order="bgra"), "rgb or bgr"),
        (lambda d: d["refiner"].update(contract=2), "op contract 1, found 2"),
        (lambda d: d["refiner"].update(features=["depth"]), "features"),
        (lambda d: d["refiner"].update(file="none.onnx"), "not listed"),
        (lambda d: d.update(classes=[]), "classes"),
        (lambda d: d.update(provenance=[]), "provenance"),
        (lambda d: d.update(base=[1]), "base: expected an object"),
    ],
)
def test_fields(bundle, change, message):
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle.path)


def test_json_traps(bundle):
    path = bundle.path / MANIFEST
    text = path.read_text()
    for bad, message in [
        (text.replace('"height": 48', '"height": 48, "height": 49', 1), "stands twice"),
        (text.replace('"height": 48', '"height": NaN', 1), "finite"),
        (text.replace('"height": 48', '"height": 1' + "0" * 5000, 1), "JSON|integer"),
        (text.replace('"height": 48', '"height": ' + "[" * 100000, 1), "JSON"),
        (" " * (1 << 20) + text, "at most"),
    ]:
        path.write_text(bad)
        with pytest.raises(BundleError, match=message):
            load_bundle(bundle.path)
    path.write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(BundleError, match="UTF-8"):
        load_bundle(bundle.path)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([2**70, -1, "", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=JUNK, seed=st.integers(0, 2**30), action=st.sampled_from(["set", "drop", "add", "cut", "flip"]))
def test_only_bundle_error_ever(bundle, junk, seed, action):
    path = bundle.path / MANIFEST
    original = path.read_bytes()
    rng = random.Random(seed)
    try:
        if action in ("cut", "flip"):
            raw = bytearray(original)
            if action == "cut":
                raw = raw[: rng.randrange(len(raw))]
            else:
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(raw))
        else:
            data = json.loads(original.decode())
            mutate(data, junk, rng, action)
            path.write_text(json.dumps(data))
        try:
            load_bundle(bundle.path)
        except BundleError as error:
            assert "\n" not in str(error)  # noqa: PT017
    finally:
        path.write_bytes(original)


def mutate(data, junk, rng, action):
    node = data
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        if action == "drop":
            node.pop(key)
        elif action == "add" and isinstance(node, dict):
            node["new"] = junk
        else:
            node[key] = copy.deepcopy(junk)
        return


def test_tables():
    assert len(CITYSCAPES) == 19
    assert len(CAMVID) == 11
    for table in (CITYSCAPES, CAMVID):
        assert len({c.color for c in table}) == len(table)
        assert len({c.name for c in table}) == len(table)
    assert [c.name for c in CAMVID][:3] == ["sky", "building", "pole"]
    assert load_classes("camvid") is CAMVID
    assert load_classes("Cityscapes") is CITYSCAPES


def test_class_files(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("// comment\nroad 1 2 3\ntraffic light #0a0b0c\n\ngrass\n")
    table = load_classes(file)
    assert table[0] == ClassInfo("road", (1, 2, 3))
    assert table[1] == ClassInfo("traffic light", (10, 11, 12))
    assert table[2].name == "grass"
    file.write_text(json.dumps([{"name": "a", "color": [9, 9, 9]}, "b", {"name": "c"}]))
    assert [c.name for c in load_classes(str(file))] == ["a", "b", "c"]
    file.write_text("\n".join("class%d" % i for i in range(255)))
    assert len({c.color for c in load_classes(file)}) == 255
    for bad in [
        "[1, 2]",
        "[",
        "only",
        "a\na",
        "a 1 1 1\nb 1 1 1",
        "a 1 1 300\nb",
        '[{"name": "a", "color": 5}, "b"]',
        '[{"name": 3}, "b"]',
        '[{"name": "a", "color": ["x", [], {}]}, "b"]',
        "\n".join("c%d" % i for i in range(256)),
    ]:
        file.write_text(bad)
        with pytest.raises(InputError):
            load_classes(file)
    file.write_bytes(b"\xff\xff\xff")
    with pytest.raises(InputError, match="UTF-8"):
        load_classes(file)
    with pytest.raises(InputError, match="cityscapes, camvid or a readable file"):
        load_classes("nowhere")
