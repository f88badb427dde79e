"""V2 and V3 objects of the plugin library through TensorRT's call sequence, on the emulated driver.

Runs for every version under $CRISPSEG_TRT_HEADERS (folders such as 8.5.3, 8.6.1, 10.0.1, 11.1, each with an include
folder; the public TensorRT repository has them). Without that variable everything here is skipped.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorrt_build
from onnx import helper
from tensorrt_harness import KFLOAT, KINT32, Harness, HarnessError, Network, tensor

sys.path.append(str(Path(__file__).parents[1] / "engines"))

from native_net import CLASSES, FRAME, frame, interpret, unet  # noqa: E402

from crispseg.engines import cuda  # noqa: E402
from crispseg.engines.tensorrt.strip import pack_with_library, strip_refiner  # noqa: E402

HEADERS = tensorrt_build.header_folders()
pytestmark = pytest.mark.skipif(
    not HEADERS, reason="no TensorRT headers: set $%s to a folder of <version>/include" % tensorrt_build.HEADERS
)
V2 = [version for version in HEADERS if int(version.split(".")[0]) < 10]
V3 = [version for version in HEADERS if version not in V2]
NEWEST = sorted(V2)[-1:] + sorted(V3, key=lambda v: [int(n) for n in v.split(".")])[-1:]
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3}

_open = {}


@pytest.fixture
def harness(kernel_image, emulated):
    """Opens the harness of one version on a plugin library of the same or of another one."""
    used = []

    def load(version, plugin_version=""):
        key = (version, plugin_version or version)
        if key not in _open:
            library = tensorrt_build.plugin_library(HEADERS[key[1]])
            _open[key] = Harness(tensorrt_build.harness_library(HEADERS[version]), library, kernel_image)
        used.append(_open[key])
        return _open[key]

    yield load
    for one in used:
        one.clear()


@pytest.fixture(scope="module")
def device(emulated_driver):
    return cuda.open_device(0)


def stripped(precision="fp32", **options):
    model = unet(**options).model()
    return model, strip_refiner(model, precision, pack_with_library()).model


def check(network, stream, model, feeds, precision="fp32"):
    """The network's results against the definition of the ops in float64."""
    exact = interpret(model, feeds)
    count = int(network.get(stream, "count")[0])
    assert count == exact["count"][0]
    assert network.get(stream, "found")[0] == exact["found"][0]
    assert (network.get(stream, "coords")[:count] == exact["coords"]).all()
    tolerance = TOLERANCE[precision]
    for name in ("yo", "ye"):
        found = network.get(stream, name)[:count, :CLASSES]
        scale = max(1.0, np.abs(exact[name]).max(initial=0))
        assert np.abs(found - exact[name]).max(initial=0) < 4 * tolerance * scale, name
    margin = np.full(FRAME, np.inf)
    if count:
        top = np.sort(exact["ye"], 1)
        margin[exact["coords"][:, 0], exact["coords"][:, 1]] = top[:, -1] - top[:, -2]
    clear = margin > 20 * tolerance
    assert clear.mean() > 0.5
    pixels = FRAME[0] * FRAME[1]
    labels = network.get(stream, "labels").view(np.uint8)[:pixels].reshape(FRAME)
    assert (labels == exact["labels"])[clear].all()
    return labels


def run(network, stream, feeds, context=0):
    for name, array in feeds.items():
        network.set(stream, name, array)
    network.enqueue(stream, context)
    stream.synchronize()


@pytest.mark.parametrize("version", HEADERS)
def test_a_refiner_through_the_call_sequence(harness, device, version):
    """Every op is created, cloned, configured, serialised, recreated and attached twice, then run in both contexts."""
    model, nodes = stripped()
    network = Network(harness(version), device, nodes, open_rows=True)
    stream = device.stream()
    feeds = frame(1)
    run(network, stream, feeds)
    first = check(network, stream, model, feeds)
    run(network, stream, feeds, context=1)
    assert (check(network, stream, model, feeds) == first).all()


@pytest.mark.parametrize("version", NEWEST)
@pytest.mark.parametrize(
    ("precision", "options", "seed", "share"),
    [
        ("fp16", {}, 1, 0.6),
        ("fp16", {"features": "rgb,xy,p,p>0.25", "mode": "entropy", "upsample": "nearest", "order": "bgr"}, 2, 0.6),
        ("fp32", {"features": "xy,rgb", "upsample": "bilinear_corners"}, 3, 0.6),
        ("fp32", {}, 4, 1.1),
    ],
)
def test_precisions_and_options(harness, device, version, precision, options, seed, share):
    model, nodes = stripped(precision, **options)
    network = Network(harness(version), device, nodes)
    stream = device.stream()
    feeds = frame(seed, level=30.0 if share > 1 else 6.0, share=share)
    run(network, stream, feeds)
    check(network, stream, model, feeds, precision)


@pytest.mark.parametrize("version", NEWEST)
def test_enqueue_is_captured_and_replayed(harness, device, version, emulated):
    """Another frame through the same graph: nothing is decided on the host while the graph is made."""
    model, nodes = stripped("fp16")
    network = Network(harness(version), device, nodes)
    stream = device.stream()
    run(network, stream, frame(1))
    with stream.capture() as made:
        network.enqueue(stream)
    for seed in (5, 6):
        feeds = frame(seed)
        for name, array in feeds.items():
            network.set(stream, name, array)
        made[0].launch(stream)
        stream.synchronize()
        check(network, stream, model, feeds, "fp16")


@pytest.mark.parametrize("version", NEWEST)
def test_over_capacity(harness, device, version):
    model, nodes = stripped(capacity=150)
    network = Network(harness(version), device, nodes)
    stream = device.stream()
    feeds = frame(5)
    run(network, stream, feeds)
    exact = interpret(unet().model(), feeds)
    assert network.get(stream, "found")[0] == exact["found"][0] > 150 == network.get(stream, "count")[0]
    coords = network.get(stream, "coords")
    assert coords.shape == (150, 2)
    assert (np.diff(coords[:, 0] * FRAME[1] + coords[:, 1]) > 0).all()


def submanifold(**changes):
    values = {"height": 9, "width": 11, "inputs": 3, "outputs": 1, **changes}
    node = helper.make_node("SubmanifoldMap", [], [])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())
    return node


@pytest.mark.parametrize("version", HEADERS)
def test_refusals_say_why(harness, version):
    """A node that strip.py did not prepare, and tensors that do not fit: refused, with the reason in TensorRT's log."""
    one = harness(version)
    inputs = [tensor(KINT32, (40, 2)), tensor(KINT32, (1,))]
    for node, tensors, piece in (
        (
            helper.make_node("SubmanifoldMap", [], [], height=9, width=11),
            inputs,
            "inputs: expected a value, found none",
        ),
        (submanifold(colour=1), inputs, "colour"),
        (submanifold(height=-1), inputs, "height: expected 0 to"),
        (submanifold(), [tensor(KINT32, (40, 3)), inputs[1]], "coords: expected [?,2], found [40,3]"),
        (submanifold(), inputs[:1], "expected 2 inputs"),
        (submanifold(), [tensor(KFLOAT, (40, 2)), inputs[1]], "taken"),  # no format combination: the builder says it
    ):
        with pytest.raises(HarnessError) as error:
            one.create(node, tensors)
        assert piece in one.message() or piece in str(error.value)
        if not version.startswith("8.5") and piece in one.message():  # 8.5 gives a library no logger
            assert one.logged() == one.message()


@pytest.mark.parametrize("version", HEADERS)
def test_without_kernels_attaching_fails(kernel_image, emulated, version, tmp_path):
    """In a process of its own: no image was given, and the message says what to do."""
    library = tensorrt_build.plugin_library(HEADERS[version])
    code = (
        "import sys; sys.path[:0] = %r\n"
        "from pathlib import Path\n"
        "from crispseg.engines import cuda\n"
        "from tensorrt_harness import *\n"
        "from onnx import helper\n"
        "cuda.open_device(0)\n"
        "one = Harness(Path(%r), Path(%r))\n"
        "node = helper.make_node('SubmanifoldMap', [], [], height=9, width=11)\n"
        "node.attribute.extend([helper.make_attribute('inputs', 3), helper.make_attribute('outputs', 1)])\n"
        "try:\n"
        "    one.create(node, [tensor(KINT32, (40, 2)), tensor(KINT32, (1,))])\n"
        "except HarnessError as error:\n"
        "    print('refused:', error)\n"
    ) % (sys.path, str(tensorrt_build.harness_library(HEADERS[version])), str(library))
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()
    assert b"refused: crispseg: SubmanifoldMap: no kernels" in done.stdout, done.stdout.decode()


@pytest.mark.parametrize(
    ("version", "plugin_version"),
    [(a, b) for group in (V2, V3) for a, b in ((group[0], group[-1]), (group[-1], group[0])) if a != b]
    if len(V2) > 1 and len(V3) > 1
    else [],
)
def test_one_binary_serves_its_versions(harness, device, version, plugin_version):
    """A library built with the oldest headers under the newest TensorRT of its kind, and the reverse."""
    model, nodes = stripped()
    network = Network(harness(version, plugin_version), device, nodes)
    stream = device.stream()
    feeds = frame(1)
    run(network, stream, feeds)
    check(network, stream, model, feeds)


@pytest.mark.parametrize("version", [v for v in HEADERS if v.startswith("8.5")])
def test_registration_with_an_8_5_registry(harness, version):
    one = harness(version)
    one.library.harness_register.argtypes = [ctypes.c_char_p]
    assert one.library.harness_register(b"somewhere") == 8
    assert one.library.harness_register(None) == 8


@pytest.mark.parametrize("version", HEADERS)
def test_the_library_exports_its_entries_alone(version):
    library = tensorrt_build.plugin_library(HEADERS[version])
    names = subprocess.run(["nm", "-D", "--defined-only", library], stdout=subprocess.PIPE, check=True).stdout.decode()
    found = {line.split()[-1] for line in names.splitlines()}
    wanted = {"getPluginCreators", "crispseg_register", "crispseg_set_kernels", "crispseg_set_kernel_image"}
    wanted |= {"crispseg_plugin_error", "crispseg_plugin_info", "crispseg_tensorrt_version", "setLoggerFinder"}
    wanted |= {"getCreators"} if version in V3 else set()
    assert found == wanted
    needed = subprocess.run(["readelf", "-d", library], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert not re.search(r"NEEDED.*(nvinfer|cudart|libcuda)", needed)
