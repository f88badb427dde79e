"""The engine cache of a bundle, the timing cache, and what failed builds are explained with."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from fake_tensorrt import VERSIONS, make
from trt_support import copy_bundle

from crispseg.bundle import bundle_hash, load_bundle
from crispseg.engines import cache
from crispseg.engines.cache import Identity
from crispseg.engines.tensorrt import timing
from crispseg.engines.tensorrt.diagnose import explain, explain_parse
from crispseg.errors import BundleError, EnvironmentMismatch, InputError, UnsupportedOp

WANTED = Identity("tensorrt", "base", {"base.onnx": "ab" * 32}, {"precision": "fp16", "workspace_mib": None},
                  {"gpu": "A", "tensorrt": "10.3.0"})  # fmt: skip


def changed(**changes):
    values = {name: getattr(WANTED, name) for name in ("backend", "role", "sources", "spec", "environment")}
    return Identity(**{**values, **changes})


def test_key_depends_on_everything():
    others = [
        changed(role="baseline"),
        changed(backend="cuda"),
        changed(sources={"base.onnx": "ac" * 32}),
        changed(sources={"other.onnx": "ab" * 32}),
        changed(spec={"precision": "fp32", "workspace_mib": None}),
        changed(spec={"precision": "fp16", "workspace_mib": 64}),
        changed(environment={"gpu": "B", "tensorrt": "10.3.0"}),
        changed(environment={"gpu": "A", "tensorrt": "10.3.0", "cuda": "12"}),
    ]
    keys = {item.key for item in [WANTED, *others]}
    assert len(keys) == 1 + len(others)
    assert changed(environment={"tensorrt": "10.3.0", "gpu": "A"}).key == WANTED.key, "order of the entries"


def test_store_find_replace(tmp_path):
    first = cache.store(tmp_path, WANTED, {"base.engine": b"one"}, {"build_s": 1.5})
    assert first.path == tmp_path / "engines" / WANTED.key
    assert first.read("base.engine") == b"one"
    assert first.facts == {"build_s": 1.5}
    cache.store(tmp_path, WANTED, {"base.engine": b"two"})
    small = changed(spec={"precision": "fp16"})  # any workspace serves
    assert cache.find(tmp_path, small).read("base.engine") == b"two"
    assert sorted(os.listdir(tmp_path / "engines")) == [WANTED.key]


def test_nearest_difference_and_command(tmp_path):
    with pytest.raises(
        EnvironmentMismatch, match="none in .*; run `crispseg build .* --backend tensorrt --precision fp16`"
    ):
        cache.find(tmp_path, WANTED)
    cache.store(tmp_path, changed(environment={"gpu": "B", "tensorrt": "8.5.2"}), {"base.engine": b"x"})
    cache.store(tmp_path, changed(environment={"gpu": "A", "tensorrt": "10.2.0"}), {"base.engine": b"x"})
    with pytest.raises(EnvironmentMismatch) as caught:
        cache.find(tmp_path, WANTED)
    text = str(caught.value)
    assert "tensorrt: expected 10.3.0, found '10.2.0'" in text
    assert "gpu" not in text, "the nearest one is told"
    with pytest.raises(EnvironmentMismatch, match="network base.onnx: expected cdcdcdcdcdcd"):
        cache.find(tmp_path, changed(sources={"base.onnx": "cd" * 32}))


def tampered(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["identity"]["environment"].update(gpu="B"),
        lambda d: d["identity"]["spec"].update(precision="fp32"),
        lambda d: d["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}),
        lambda d: d["files"].update({"manifest.json": {"sha256": "0" * 64, "bytes": 1}}),
        lambda d: d["files"]["base.engine"].update(sha256="zz"),
        lambda d: d["files"]["base.engine"].update(bytes=-1),
        lambda d: d.update(files=[]),
        lambda d: d.update(facts=None),
        lambda d: d["identity"].update(environment=None),
        lambda d: d["identity"].pop("spec"),
        lambda d: d.update(schema=2),
        lambda d: d.update(more=1),
    ],
)
def test_altered_manifest_is_refused(tmp_path, change):
    artefact = cache.store(tmp_path, WANTED, {"base.engine": b"one"})
    tampered(artefact.path / "manifest.json", change)
    with pytest.raises(BundleError):
        cache.load(artefact.path)
    with pytest.raises(EnvironmentMismatch, match="none in .* that can be used.*run `crispseg build"):
        cache.find(tmp_path, WANTED)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b'{"schema": 1, "schema": 1}', b"x" * (1 << 20) + b"y"]
)
def test_manifest_that_is_none(tmp_path, content):
    artefact = cache.store(tmp_path, WANTED, {"base.engine": b"one"})
    (artefact.path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError):
        cache.load(artefact.path)


def test_renamed_or_linked_artefact_is_refused(tmp_path):
    artefact = cache.store(tmp_path, WANTED, {"base.engine": b"one"})
    other = artefact.path.with_name("0" * 64)
    artefact.path.rename(other)
    with pytest.raises(BundleError, match="altered, or renamed"):
        cache.load(other)
    other.rename(artefact.path)
    (tmp_path / "elsewhere").write_bytes(b"one")
    (artefact.path / "base.engine").unlink()
    (artefact.path / "base.engine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="expected a regular file"):
        cache.load(artefact.path).read("base.engine")
    (artefact.path / "base.engine").unlink()
    with pytest.raises(BundleError, match="cannot be read.*run `crispseg build"):
        cache.load(artefact.path).read("base.engine")


def test_failed_store_leaves_nothing(tmp_path):
    with pytest.raises(InputError):
        cache.store(tmp_path, WANTED, {"base.engine": b"one"}, {"when": object()})
    with pytest.raises(BundleError):
        cache.store(tmp_path, WANTED, {"a/b": b"one"})
    assert not list((tmp_path / "engines").glob("*")) if (tmp_path / "engines").exists() else True


def test_bundles_do_not_mind_engines(tmp_path):
    bundle = copy_bundle(tmp_path)
    before = bundle_hash(bundle)
    cache.store(bundle.path, WANTED, {"base.engine": b"one"})
    assert bundle_hash(load_bundle(bundle.path)) == before
    assert set(cache.sources(bundle, "base.onnx")) == {"base.onnx", "base.weights"}
    assert cache.sources(bundle, "base.onnx")["base.onnx"] == bundle.files["base.onnx"].sha256


# ---- timing cache --------------------------------------------------------------------------------------------------


def config_of(version):
    trt = make(version)
    return trt.Builder(trt.Logger()).create_builder_config(), trt


@pytest.mark.parametrize("version", VERSIONS)
def test_timing_cache_survives_and_merges(version, tmp_path):
    path = tmp_path / "deep" / "timing.cache"
    config, trt = config_of(version)
    mine, used = timing.attach(config, path)
    assert not used
    trt.behaviour.state(mine)["lines"].add(version + " a")
    other, _ = config_of(version)
    theirs, _ = timing.attach(other, path)
    trt.behaviour.state(theirs)["lines"].add(version + " b")
    timing.save(other, theirs, path)
    assert timing.save(config, mine, path) == path.stat().st_size
    assert path.read_text().split("\n") == [version + " a", version + " b"]
    again, _ = config_of(version)
    assert timing.attach(again, path)[1]
    assert sorted(p.name for p in path.parent.iterdir()) == ["timing.cache", "timing.cache.lock"]


def test_timing_cache_of_another_version_is_not_used(tmp_path):
    (tmp_path / "timing.cache").write_text("8.6.1 a")
    config, trt = config_of("10.3.0")
    cache_object, used = timing.attach(config, tmp_path / "timing.cache")
    assert not used
    assert not trt.behaviour.state(cache_object)["lines"]


def test_timing_cache_in_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    config, _ = config_of("10.3.0")
    with pytest.raises(InputError, match="--timing-cache .*name another"):
        timing.attach(config, tmp_path / "file" / "timing.cache")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="--timing-cache"):
        timing.attach(config, tmp_path / "folder")


def add_line(path, name):
    config, trt = config_of("10.3.0")
    cache_object, _ = timing.attach(config, Path(path))
    trt.behaviour.state(cache_object)["lines"].add("10.3.0 " + name)
    timing.save(config, cache_object, Path(path))


def test_builds_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "timing.cache"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_line, args=(str(path), "line%d" % i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert path.read_text().split("\n") == ["10.3.0 line%d" % i for i in range(4)]


# ---- explanations --------------------------------------------------------------------------------------------------

NO_TACTIC = "10: Error Code 10: Internal Error (Could not find any implementation for node %s.)"
TACTIC = "Tactic Device request: 457MB Available: 123MB. Device memory is insufficient to use tactic."
ABSENT = "getPluginCreator could not find plugin: SparseConv2d version: 1"
MACHINE, OP = EnvironmentMismatch, UnsupportedOp


@pytest.mark.parametrize(
    ("lines", "workspace", "kind", "parts"),
    [
        (["GPU memory allocation error during getBestTactic: conv1", NO_TACTIC % "conv1"], None, MACHINE,
         ["out of memory at node conv1", "all memory of the device", "--precision fp16 (half the memory)"]),
        ([TACTIC, NO_TACTIC % "c"],
         256, MACHINE, ["asked for 457 MiB", "--workspace 512"]),
        (["Error Code 1: Cuda Runtime (out of memory)"], 256, MACHINE, ["out of memory", "--workspace 512"]),
        (["Some tactics do not have sufficient workspace memory to run.", NO_TACTIC % "a + b"], 16, MACHINE,
         ["at node a + b", "--workspace 64"]),
        ([NO_TACTIC % "{ForeignNode[/x...y]}"], None, OP, ["no implementation of node {ForeignNode[/x...y]}"]),
        (["CUDA initialization failure with error: 35"], None, MACHINE, ["cannot use the GPU", "crispseg doctor"]),
        ([ABSENT], None, OP, ["a plugin is missing"]),
        (["something else"], None, OP, ["built no engine: something else"]),
        ([], None, OP, ["TensorRT gave no reason"]),
    ],
)  # fmt: skip
def test_explanations(lines, workspace, kind, parts):
    error = explain([("error", line) for line in lines], "base", workspace, "fp32")
    assert type(error) is kind
    for part in ["base: ", *parts]:
        assert part in str(error)
    assert "\n" not in str(error)


def test_parse_errors_name_the_node():
    names = ["a (Conv)", "b (Foo)"]
    old = [{"text": "No importer registered", "node": 1, "name": "", "operator": ""}]
    assert "node b (Foo) does not parse in TensorRT 8.6.1" in str(explain_parse(old, names, "base", "8.6.1"))
    new = [{"text": "Plugin not found", "node": 0, "name": "n", "operator": "SparseConv2d"}] * 2
    text = str(explain_parse(new, names, "refiner", "10.3"))
    assert "node n (SparseConv2d)" in text
    assert "(and 1 more errors)" in text
    assert "build the plugin library" in text
    assert "node unknown" in str(explain_parse([], names, "base", "8.6.1"))
