"""`--refiner-engine`: base and refiner as TensorRT engines in one CUDA graph.

TensorRT is a stand-in made from its recorded interface; its engines run the rewritten graph with our kernels on the
emulated driver, so that what they are given and give is compared to the last byte with the kernels called directly.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import gpu_toy
from fake_tensorrt import make
from gpu_toy import FRAME, LOW, picture
from native_net import CLASSES
from PIL import Image
from trt_support import creator_fields, libraries  # noqa: F401
from working_tensorrt import Working

from crispseg.bundle import load_bundle
from crispseg.cli import main
from crispseg.engines import cuda, nvrtc
from crispseg.engines.tensorrt import refiner, registry
from crispseg.engines.tensorrt import run as tensorrt_run
from crispseg.errors import BundleError, EnvironmentMismatch, InputError, UnsupportedOp
from crispseg.runtime.accuracy import evaluate
from crispseg.runtime.latency import measure
from crispseg.runtime.pipeline import open_pipeline

ALL = ("labels", "confidence", "active")
VERSIONS = ("8.5.3", "11.4.0.106")
LOGITS = np.random.default_rng(5).normal(0, 4.0, (1, CLASSES, *LOW)).astype(np.float32)


@pytest.fixture(scope="module")
def process(emulated_driver, libraries):  # noqa: F811
    """version -> the tensorrt module of a new process."""
    core, library = libraries
    patch = pytest.MonkeyPatch()
    sources = nvrtc.kernel_sources()
    patch.setattr(nvrtc, "kernel_sources", lambda: sources)  # one key, even if somebody edits a kernel meanwhile
    patch.setenv(registry.ENVIRONMENT, str(library))
    patch.setattr(registry, "_libnvinfer", lambda: str(core))
    explicit = registry._register_explicitly

    def start(version):
        patch.setattr(registry, "_loaded", {})
        trt = make(version, Working)
        trt.behaviour.library, trt.behaviour.plugin, trt.behaviour.logits = creator_fields(), library, LOGITS
        ctypes.CDLL(str(library)).crispseg_set_kernels(b"")

        def register(path, release):
            trt.behaviour.order.append("load plugins")
            result = explicit(path, release)
            trt.behaviour.plugins.update(trt.behaviour.library)
            return result

        patch.setattr(registry, "_register_explicitly", register)
        patch.setitem(sys.modules, "tensorrt", trt)
        return trt

    yield start
    patch.undo()


@pytest.fixture(scope="module")
def built(tmp_path_factory, process, kernel_image):
    """version -> bundle with kernels and engines in fp16, made by the command."""
    made = {}

    def build(version):
        if version not in made:
            process(version)
            bundle = gpu_toy.write(tmp_path_factory.mktemp("engines") / "b")
            gpu_toy.store_kernels(bundle, kernel_image)
            arguments = ["build", str(bundle.path), "--backend", "tensorrt", "--refiner-engine", "--json"]
            assert main(arguments) == 0
            made[version] = load_bundle(bundle.path)
        return made[version]

    return build


def open_engines(bundle, **more):
    return open_pipeline(bundle, backend="tensorrt", refiner_engine=True, **more)


def same(found, exact):
    assert (found.count, found.found) == (exact.count, exact.found)
    for name in ALL:
        assert (getattr(found, name) == getattr(exact, name)).all(), name


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_of_the_engine_are_those_of_the_kernels(built, process, emulated, version):
    bundle, trt = built(version), process(version)
    frames = [picture(1, *FRAME), picture(2, 48, 80)]
    with open_engines(bundle) as pipe:
        results = [pipe.run(frames[0], ALL)]
        images = [slot.image.address for slot in pipe._slots]
        results.append(pipe.run(frames[1], ALL))
        canvas = pipe._frames.canvas(0)
        facts = pipe.describe()
    log, captured = trt.behaviour.order, trt.behaviour.captured
    assert log[:3] == ["open base", "load plugins", "open refiner"]
    # A run at each address of the refiner's input, then a graph for each slot; frames of two sizes.
    one, graphs = ["run base", "run refiner"], ["capture base", "capture refiner"] * 2
    assert log[3:] == one * 2 + graphs + one + graphs
    assert [address for _, address in captured] == [*images, canvas, canvas]  # an uploaded frame is read where it lies
    assert len({context for context, _ in captured[:2]}) == 2  # a graph's context keeps its addresses
    assert len({context for context, _ in captured[2:]}) == 1
    assert facts["graphs"]["number"] == 1
    assert (facts["refiner"]["backend"], facts["refiner"]["precision"]) == ("tensorrt", "fp16")
    assert facts["refiner"]["capacity"] == bundle.refiner.capacity
    assert trt.behaviour.contexts == 3  # one of the base, one of the refiner for each slot
    process(version)
    with open_pipeline(bundle, backend="tensorrt") as pipe:
        for result, frame in zip(results, frames):
            same(result, pipe.run(frame, ALL))
    assert 0.05 < results[0].density < 0.95


def test_logits_that_are_not_finite_are_told(built, process, emulated, monkeypatch):
    bundle, trt = built(VERSIONS[1]), process(VERSIONS[1])
    logits = LOGITS.copy()
    logits[0, 1, 2:5, 5:8] = np.inf
    monkeypatch.setattr(trt.behaviour, "logits", logits)
    with open_engines(bundle) as pipe:
        assert [pipe.run(picture(1, *FRAME)).not_finite for _ in range(2)] == [9, 9]


def test_frames_that_overlap(built, process, emulated):
    bundle, _ = built("11.4.0.106"), process("11.4.0.106")
    frames = [picture(seed, *FRAME) for seed in range(3)]
    with open_engines(bundle) as pipe:
        alone = [pipe.run(frame, ALL) for frame in frames]
        assert len({result.labels.tobytes() for result in alone}) == len(frames)
        assert {"base", "refine", "gpu_compute"} <= set(alone[0].times)
        live, results = emulated.live(), []
        pipe.submit(frames[0], ALL)
        for frame in frames[1:]:
            pipe.submit(frame, ALL)
            results.append(pipe.collect())
        results.append(pipe.collect())
        assert emulated.live() == live
    for result, exact in zip(results, alone):
        same(result, exact)


def test_nothing_is_allocated_and_nothing_waits_in_a_capture(built, process, emulated, monkeypatch):
    bundle, _ = built("11.4.0.106"), process("11.4.0.106")
    emulated.launches()
    monkeypatch.setattr(cuda, "_RELAXED", 0)  # a global capture: the driver refuses such calls
    gc.collect()
    gc.disable()  # freeing is such a call
    try:
        with open_engines(bundle) as pipe:
            first = pipe.run(picture(0, *FRAME), ALL)
            pipe.run(picture(1, 48, 80), ALL)
            same(pipe.run(picture(0, *FRAME), ALL), first)  # contexts that were given other addresses meanwhile
    finally:
        gc.enable()


def test_closing_gives_the_device_back(built, process, emulated):
    bundle, _ = built("11.4.0.106"), process("11.4.0.106")
    gc.collect()
    before = emulated.live()
    pipe = open_engines(bundle)
    pipe.run(picture(0, *FRAME))
    pipe.close()
    pipe.close()
    gc.collect()
    assert emulated.live() == before


def test_int8_takes_the_fp16_refiner(built, process, emulated, monkeypatch):
    bundle, _ = built("11.4.0.106"), process("11.4.0.106")
    load = tensorrt_run.load
    asked = []

    def remember(bundle, role, context, precision, **more):
        asked.append((role, precision))
        return load(bundle, role, context, precision="fp16" if role == "base" else precision, **more)

    monkeypatch.setattr(tensorrt_run, "load", remember)
    with open_engines(bundle, precision="int8") as pipe:
        assert pipe.describe()["refiner"]["precision"] == "fp16"
    assert asked == [("base", "int8"), ("refiner", "int8")]


def test_int8_refiner_beside_a_float_base(built, process, emulated, tmp_path, kernel_image, capsys):
    """A bundle whose refiner alone was calibrated: one command builds, one runs."""
    process("11.4.0.106")
    bundle = gpu_toy.calibrated(gpu_toy.write(tmp_path / "float"), tmp_path / "int8")
    gpu_toy.store_kernels(bundle, kernel_image)
    Image.fromarray(picture(0, *FRAME)).save(tmp_path / "a.png")
    path = str(bundle.path)
    assert main(["build", path, "--backend", "tensorrt", "--precision", "int8", "--refiner-engine", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["engines"]
    assert [(row["part"], row["precision"]) for row in rows] == [("base", "fp16"), ("refiner", "int8")]
    process("11.4.0.106")
    common = ["--backend", "tensorrt", "--precision", "int8", "--refiner-engine", "--json"]
    assert main(["run", path, str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *common]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pipeline"]["refiner"]["precision"] == "int8"
    assert report["warnings"] == ["the base has no calibration: it runs in float"]
    with open_engines(bundle, precision="int8") as pipe:
        found = pipe.run(picture(0, *FRAME), ALL)
    with open_pipeline(bundle, backend="tensorrt", precision="int8") as pipe:
        assert pipe.describe()["refiner"]["precision"] == "int8"
        same(found, pipe.run(picture(0, *FRAME), ALL))


def test_an_engine_of_a_lower_capacity(built, process, emulated, tmp_path, kernel_image):
    process("11.4.0.106")
    bundle = gpu_toy.write(tmp_path / "b")
    gpu_toy.store_kernels(bundle, kernel_image)
    arguments = ["build", str(bundle.path), "--backend", "tensorrt", "--refiner-engine", "--json", "--capacity", "100"]
    assert main(arguments) == 0
    process("11.4.0.106")
    with open_engines(bundle) as pipe:
        assert pipe.capacity == 100
        result = pipe.run(picture(0, *FRAME), ALL)
        with pytest.raises(InputError, match=r"capacity 50: the capacity of a refiner engine is fixed.*\(100\)"):
            pipe.set_capacity(50)
        pipe.set_capacity(100)
        same(pipe.run(picture(0, *FRAME), ALL), result)
    assert result.count == 100 < result.found
    with open_pipeline(bundle, backend="tensorrt") as pipe:
        pipe.set_capacity(100)
        same(pipe.run(picture(0, *FRAME), ALL), result)


def test_bytes_that_fill_no_word(emulated):
    """A frame whose bytes are no multiple of four is copied, so that nobody reads behind its end."""
    shape = (3, 5)
    context = cuda.open_device(0)
    bundle = type("B", (), {"height": 3, "width": 5, "classes": "ab", "path": "b",
                            "base": type("N", (), {"logits_height": 1, "logits_width": 2})})  # fmt: skip
    words, bound, floats = np.dtype(np.int32), [], np.dtype(np.float32)

    class Engine:
        inputs = {"image": (words, (12,)), "logits": (floats, (1, 2, 1, 2))}
        outputs = {"labels": (words, (4,)), "confidence": (words, (4,)), "coords": (words, (7, 2)),
                   "count": (words, (1,)), "found": (words, (1,))}  # fmt: skip

        def nbytes(self, name):
            return int(np.prod({**self.inputs, **self.outputs}[name][1])) * 4

        def bind(self, addresses):
            bound.append(addresses)

        def enqueue(self, stream):
            stream.copy(bound[-1]["labels"], bound[-1]["image"], 16)  # whole words

        def close(self):
            pass

    engine = refiner.TensorRTRefiner(Engine(), bundle, context, "fp16")
    assert (engine.capacity, engine.outputs["labels"]) == (7, (np.uint8, [3, 5]))
    stream = context.stream()
    frame = np.arange(45, dtype=np.uint8).reshape(*shape, 3)
    image, labels = cuda.upload_now(context, frame), context.pinned(shape, np.uint8)
    for _ in range(2):
        engine.enqueue(stream, image.address, image.address)
    stream.download(labels, engine.address("labels"))
    stream.synchronize()
    assert (labels.ravel() == np.arange(15)).all()
    assert len(bound) == 1
    assert bound[0]["image"] != image.address
    with pytest.raises(InputError, match="output 'depth'"):
        engine.enqueue(stream, image.address, image.address, ["depth"])
    for thing in (engine, image, stream):
        thing.close()
    Engine.outputs = {**Engine.outputs, "found": (words, (2,))}
    with pytest.raises(
        EnvironmentMismatch, match=r"not those of the bundle \(found\); run `crispseg build b .*--force"
    ):
        refiner.TensorRTRefiner(Engine(), bundle, context, "fp16")


# ---- what is missing -------------------------------------------------------------------------------------------------


def command(bundle, *more):
    """(exit code of crispseg run with both engines)."""
    return main(["run", str(bundle.path), str(bundle.path.parent / "a.png"), "-o", str(bundle.path.parent / "out"),
                 "--refiner-engine", *more])  # fmt: skip


@pytest.fixture
def bare(tmp_path, process, emulated, kernel_image):
    """A bundle with kernels and the engine of the base alone, and a picture beside it."""
    process("11.4.0.106")
    bundle = gpu_toy.write(tmp_path / "b")
    gpu_toy.store_kernels(bundle, kernel_image)
    assert main(["build", str(bundle.path), "--backend", "tensorrt", "--no-refiner-engine", "--json"]) == 0
    Image.fromarray(picture(0, *FRAME)).save(tmp_path / "a.png")
    return bundle


def test_an_engine_that_was_not_built_names_the_command(bare, process, emulated, capsys):
    trt = process("11.4.0.106")
    gc.collect()
    before = emulated.live()
    with pytest.raises(EnvironmentMismatch) as caught:
        open_engines(bare)
    text = "run `crispseg build %s --backend tensorrt --precision fp16 --refiner-engine`" % bare.path
    assert "tensorrt engine of the refiner: none in" in str(caught.value)
    assert text in str(caught.value)
    assert trt.behaviour.order == ["open base"]  # nothing was registered for an engine that is not there
    gc.collect()
    assert emulated.live() <= before + 1  # the stand-in's own copy of the logits
    capsys.readouterr()
    assert command(bare, "--backend", "tensorrt") == 2
    message = "".join(capsys.readouterr())
    assert "--refiner-engine" in message
    assert "Traceback" not in message
    assert not (bare.path.parent / "out" / "labels").exists()


def test_a_plugin_library_that_is_missing_or_another(bare, process, monkeypatch, tmp_path, libraries):  # noqa: F811
    process("11.4.0.106")
    assert main(["build", str(bare.path), "--backend", "tensorrt", "--refiner-engine", "--json"]) == 0
    process("11.4.0.106")
    monkeypatch.setenv(registry.ENVIRONMENT, str(tmp_path / "nothing.so"))
    with pytest.raises(EnvironmentMismatch, match="TensorRT plugin library: expected .*nothing.so"):
        open_engines(bare)
    other = tmp_path / "libother.so"
    other.write_bytes(libraries[1].read_bytes() + b" ")
    monkeypatch.setenv(registry.ENVIRONMENT, str(other))
    with pytest.raises(EnvironmentMismatch, match="plugin_sha256: expected .*--refiner-engine"):
        open_engines(bare)
    monkeypatch.undo()
    (path,) = bare.path.glob("engines/*/refiner.engine")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated.*--refiner-engine"):
        open_engines(bare)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--backend", "cuda"], "--refiner-engine: expected --backend tensorrt, found cuda"),
        ([], "--refiner-engine: expected --backend tensorrt, found native"),
        (["--backend", "tensorrt", "--no-refine"], "expected a bundle with a refiner, and its refiner in use"),
        (["--backend", "tensorrt", "--budget-ms", "9"], "--budget-ms 9: the capacity of a refiner engine is fixed"),
    ],
)
def test_options_that_do_not_fit(tmp_path, capsys, more, text):
    bundle = gpu_toy.write(tmp_path / "b")
    Image.fromarray(picture(0, *FRAME)).save(tmp_path / "a.png")
    assert command(bundle, *more) == 2
    assert text in " ".join("".join(capsys.readouterr()).split())


def test_other_logits_than_fp32(built, process, emulated):
    with pytest.raises(UnsupportedOp, match="expected fp32 logits of the base, found fp16"):
        refiner.load(built("11.4.0.106"), cuda.open_device(0), "fp16", "fp16")


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_run_latency_and_eval(built, process, emulated, tmp_path, capsys):
    bundle = built("11.4.0.106")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for index in range(2):
        Image.fromarray(picture(index, *FRAME)).save(tmp_path / "images" / ("%d.png" % index))
        Image.fromarray(np.full(FRAME, index, np.uint8)).save(tmp_path / "labels" / ("%d.png" % index))
    process("11.4.0.106")
    images, out = str(tmp_path / "images"), tmp_path / "out"
    capsys.readouterr()
    arguments = ["run", str(bundle.path), images, "-o", str(out), "--save", "labels", "--backend", "tensorrt"]
    assert main([*arguments, "--refiner-engine", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pipeline"]["refiner"]["backend"] == "tensorrt"
    assert report["stages"]["refine"]["p50"] >= 0
    report = measure(bundle, input=images, backend="tensorrt", refiner_engine=True, seconds=0, warmup=0, min_runs=1)
    assert report["pipeline"]["graphs"]["number"] == 1
    assert report["pipeline"]["refiner"]["backend"] == "tensorrt"
    assert "refine" in report["definitions"]
    assert report["throughput_qps"] > 0
    found = evaluate(bundle, images, tmp_path / "labels", backend="tensorrt", limit=1, refiner_engine=True)
    exact = evaluate(bundle, images, tmp_path / "labels", backend="tensorrt", limit=1)
    assert found["refined"] == exact["refined"]
    assert found["refined"] != found["base"]
    with open_pipeline(bundle, backend="tensorrt") as pipe:
        saved = np.asarray(Image.open(out / "labels" / "1.png"))
        assert (saved == pipe.run(picture(1, *FRAME)).labels).all()
