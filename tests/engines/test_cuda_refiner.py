"""The refiner on the CUDA kernels (emulated driver) against the float64 interpreter of the op contract."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest
from native_net import CLASSES, FRAME, LOW, Net, frame, interpret, unet

from crispseg.engines import cuda_refiner
from crispseg.engines.cuda_plan import level_capacities, plan_device
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_graph import read_graph
from crispseg.errors import BundleError, InputError, UnsupportedOp

MATRICES = ("x", "yi", "cat", "wide", "twice", "low2", "dec.z0", "yo", "ye")
ALL = dict(level=0.0)  # every pixel uncertain
NONE = dict(level=30.0, share=1.1)
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3}


def close_to(found, exact, tolerance, name):
    assert found.shape == exact.shape, name
    scale = max(1.0, np.abs(exact).max(initial=0))
    assert np.abs(found - exact).max(initial=0) < tolerance * scale, name


def check(found, exact, precision, matrices=()):
    assert int(found["count"][0]) == exact["count"][0]
    assert int(found["found"][0]) == exact["found"][0]
    assert (found["coords"] == exact["coords"]).all()
    tolerance = TOLERANCE[precision]
    for name in matrices:
        close_to(found[name], exact[name], tolerance if name not in ("yo", "ye") else 4 * tolerance, name)
    margin = np.full(FRAME, np.inf)
    if len(exact["coords"]):
        top = np.sort(exact["ye"], 1)
        margin[exact["coords"][:, 0], exact["coords"][:, 1]] = top[:, -1] - top[:, -2]
    clear = margin > 20 * tolerance
    assert clear.mean() > 0.5
    assert (found["labels"] == exact["labels"])[clear].all()
    if precision == "fp32":
        assert np.abs(found["confidence"].astype(int) - exact["confidence"]).max() <= 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("features", "mode", "head"),
    [
        ("rgb", "gated", {}),
        ("rgb,xy,p,p>0.25", "entropy", {"upsample": "nearest", "order": "bgr"}),
        ("xy,rgb", "gated", {"upsample": "bilinear_corners"}),
    ],
)
@pytest.mark.parametrize("case", ["some", "none"])
def test_agrees_with_the_definition(opened, precision, features, mode, head, case):
    net = unet(features=features, mode=mode, **head)
    net.extra = list(MATRICES)
    feeds = {"some": frame(1), "none": frame(3, **NONE)}[case]
    exact = interpret(net.model(), feeds)
    check(opened(net, precision).run(feeds), exact, precision, MATRICES)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_pixel_active(opened, precision):
    net = unet()
    net.extra = list(MATRICES)
    feeds = frame(2, **ALL)
    check(opened(net, precision).run(feeds), interpret(net.model(), feeds), precision, MATRICES)


def test_fp16_logits_of_a_base(opened):
    net, feeds = unet(), frame(4)
    feeds["logits"] = feeds["logits"].astype(np.float16).astype(np.float32)
    check(opened(net, "fp16", "fp16").run(feeds), interpret(net.model(), feeds), "fp16")


def test_over_capacity_keeps_the_most_uncertain(opened):
    net = unet(capacity=150)
    feeds = frame(5)
    exact = interpret(unet().model(), feeds)
    engine = opened(net)
    found = engine.run(feeds)
    assert int(found["found"][0]) == exact["found"][0] > 150
    assert int(found["count"][0]) == len(found["coords"]) == 150
    flat = found["coords"][:, 0] * FRAME[1] + found["coords"][:, 1]
    assert (np.diff(flat) > 0).all()
    # The CPU engine and the kernels may differ inside one of 2048 bins of entropy, no further.
    kept = interpret(net.model(), feeds)["coords"]
    assert len({tuple(c) for c in kept} & {tuple(c) for c in found["coords"]}) >= 145


def test_a_lower_capacity_from_the_next_frame_on(opened):
    feeds = frame(6)
    engine = opened(unet())
    whole = engine.run(feeds)
    for capacity in (40, 90):
        engine.capacity = capacity
        cut = engine.run(feeds)
        assert (cut["count"][0], cut["found"][0]) == (capacity, whole["found"][0])
    engine.capacity = FRAME[0] * FRAME[1]
    again = engine.run(feeds)
    assert all((again[name] == whole[name]).all() for name in whole)
    with pytest.raises(InputError, match="expected 1 to 960"):
        engine.capacity = 961


def test_frames_do_not_leave_traces(opened):
    net = unet()
    engine = opened(net, "fp16")
    first = engine.run(frame(1))
    for other in (frame(2, **ALL), frame(3, **NONE), frame(7)):
        engine.run(other)
    again = engine.run(frame(1))
    assert all((again[name] == first[name]).all() for name in first)


def test_only_what_is_wanted_is_computed(opened, emulated):
    engine = opened(unet())
    feeds = frame(1)
    whole = engine.run(feeds)
    before = emulated.launches()
    part = engine.run(feeds, ["coords", "count"])
    few = emulated.launches() - before
    engine.run(feeds)
    assert few < (emulated.launches() - before - few) / 3
    assert set(part) == {"coords", "count"}
    assert (part["coords"] == whole["coords"]).all()


def test_a_captured_frame_is_the_same_and_allocates_nothing(opened, kernels, emulated):
    engine, context = opened(unet(), "fp16"), kernels.context
    stream = context.stream()
    image, logits = context.alloc(FRAME[0] * FRAME[1] * 3), context.alloc(4 * CLASSES * LOW[0] * LOW[1])
    labels, image_host = context.pinned(FRAME, np.uint8), context.pinned((*FRAME, 3), np.uint8)
    logits_host = context.pinned((1, CLASSES, *LOW), np.float32)
    live = emulated.live()
    with stream.capture() as graphs:
        stream.upload(image.address, image_host)
        stream.upload(logits.address, logits_host)
        engine.enqueue(stream, image.address, logits.address)
        stream.download(labels, engine.address("labels"))
    assert emulated.live() == live
    for seed in (1, 2, 8):
        feeds = frame(seed)
        image_host[:], logits_host[:] = feeds["image"], feeds["logits"]
        graphs[0].launch(stream)
        stream.synchronize()
        assert (labels == engine.run(feeds, ["labels"])["labels"]).all()


def test_closing_frees_the_device(opened, emulated):
    gc.collect()
    before = emulated.live()
    engine = opened(unet())
    assert emulated.live() > before
    engine.close()
    gc.collect()
    assert emulated.live() == before


def test_stages_and_memory_are_told(opened):
    engine = opened(unet(), "fp16")
    engine.run(frame(1))
    assert list(engine.stage_times) == ["select", "maps", "conv", "ensemble", "scatter"]
    facts = engine.describe()
    assert facts["precision"] == "fp16"
    assert facts["memory_bytes"]["weights"] > 0
    assert facts["level_capacities"] == list(level_capacities(check_graph(read_graph(engine.path)), 960))


def test_bad_inputs_and_graphs_are_refused(opened, tmp_path, kernels):
    engine = opened(unet())
    with pytest.raises(InputError, match="expected inputs image, logits"):
        engine.run({"image": frame(1)["image"]})
    with pytest.raises(InputError, match="bundle's frame size"):
        engine.run({**frame(1), "image": np.zeros((8, 8, 3), np.uint8)})
    with pytest.raises(InputError, match="output 'nothing'"):
        engine.run(frame(1), ["nothing"])
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError):
        cuda_refiner.load(tmp_path / "bad.onnx", kernels)


def test_a_convolution_of_logits_is_refused_in_fp16(opened):
    net = Net()
    net.head()
    net.conv("yo", "yi", "", "count", 1, CLASSES, CLASSES)
    net.tail("yo")
    with pytest.raises(UnsupportedOp, match="reads 'yi', which is fp32, as fp16.*--precision fp32"):
        opened(net, "fp16")
    feeds = frame(1)
    check(opened(net, "fp32").run(feeds), interpret(net.model(), feeds), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_plan_gives_nobody_the_memory_of_a_living_matrix(precision, tmp_path):
    path = tmp_path / "refiner.onnx"
    onnx.save(unet().model(), str(path))
    graph = check_graph(read_graph(path))
    plan = plan_device(graph, precision)
    item = {"fp32": 4, "fp16": 2}
    for name, place in plan.plan.places.items():
        buffer = plan.plan.buffers[place.buffer]
        size = item[plan.types[name]]
        assert buffer.width * size % 16 == 0
        assert place.offset * size % 16 == 0
        assert plan.slot_bytes[buffer.slot] >= plan.capacities[buffer.level] * buffer.width * size
        assert place.offset + graph.tensors[name].columns <= buffer.width
    buffers = plan.plan.buffers
    for i, a in enumerate(buffers):
        for b in buffers[:i]:
            assert a.slot != b.slot or a.first > b.last or b.first > a.last
