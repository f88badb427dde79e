"""CRM on TensorRT: a stand-in made from the recorded API of each release, whose engines are ONNX Runtime sessions.

It takes no shape outside the profile that the engine was built with, as TensorRT does not.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_crm  # noqa: E402
from fake_tensorrt import make  # noqa: E402
from fake_tensorrt_behaviour import Behaviour  # noqa: E402
from trt_support import Context, Stream, convert  # noqa: E402

from crispseg.bundle_masks import CrmInfo, write_mask_bundle  # noqa: E402
from crispseg.cli import main  # noqa: E402
from crispseg.engines import cuda  # noqa: E402
from crispseg.engines.tensorrt import compat, masks_crm  # noqa: E402
from crispseg.engines.tensorrt.build import BuildOptions  # noqa: E402
from crispseg.errors import EnvironmentMismatch, InputError  # noqa: E402
from crispseg.runtime import crm, crm_tiles  # noqa: E402
from crispseg.runtime.crm_profiles import crm_profiles  # noqa: E402
from crispseg.runtime.mask_refiner import RefineOptions, open_mask_refiner  # noqa: E402

torch.set_num_threads(1)
INFO = CrmInfo(
    "backbone.onnx", "fusion.onnx", "decoder.onnx", (64, 128), (0.125, 0.25, 0.5, 1.0), 32,
    (123.675, 116.28, 103.53), (58.395, 57.12, 57.375),
)  # fmt: skip
NUMPY = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64}


class Computing(Behaviour):
    """Plans carry the network and the profile; a run reads and writes the host memory at the bound addresses."""

    def do_OnnxParser_parse(self, state, model, path=None):
        self.state(state["network"])["onnx"] = bytes(model)
        return super().do_OnnxParser_parse(state, model, path)

    def do_IBuilderConfig_add_optimization_profile(self, state, profile):
        state["profile"] = self.state(profile)
        return 0

    def do_IBuilderConfig_clear_flag(self, state, flag):
        state.setdefault("cleared", []).append(flag.name)

    def do_Builder_build_serialized_network(self, state, network, config):
        plan = json.loads(bytes(super().do_Builder_build_serialized_network(state, network, config))[4:])
        plan["onnx"] = base64.b64encode(self.state(network)["onnx"]).decode()
        plan["profile"] = self.state(config).get("profile", {})
        plan["cleared"] = self.state(config).get("cleared", [])
        return self.new("IHostMemory", b"PLAN" + json.dumps(plan).encode())

    def do_ICudaEngine_create_execution_context(self, state, **options):
        made = super().do_ICudaEngine_create_execution_context(state, **options)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 4
        data = base64.b64decode(state["onnx"])
        self.state(made)["session"] = ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
        model = onnx.load_from_string(data)
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        for tensor in model.graph.initializer:  # sizes are all that matters
            if len(tensor.raw_data) > 1024:
                tensor.ClearField("raw_data")
        self.state(made).update(model=model, known={})
        return made

    def do_IExecutionContext_set_input_shape(self, state, name, shape):
        low, _, high = state["plan"]["profile"][name]
        state["shapes"][name] = tuple(shape)
        return all(a <= side <= b for a, side, b in zip(low, shape, high))

    def do_IExecutionContext_get_tensor_shape(self, state, name):
        declared = self.port(state["plan"], name)[3]
        if -1 not in declared:
            return tuple(declared)
        model, key = state["model"], json.dumps(state["shapes"], sort_keys=True)
        if key not in state["known"]:
            for value in model.graph.input:
                del value.type.tensor_type.shape.dim[:]
                for side in state["shapes"][value.name]:
                    value.type.tensor_type.shape.dim.add().dim_value = side
            found = onnx.shape_inference.infer_shapes(model).graph.output
            state["known"][key] = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in found}
        return state["known"][key][name]

    def do_IExecutionContext_execute_async_v3(self, state, stream_handle):
        arrays = {}
        for name, _, kind, _ in state["plan"]["io"]:
            shape = state["shapes"].get(name) or self.do_IExecutionContext_get_tensor_shape(state, name)
            nbytes = int(np.prod(shape)) * np.dtype(NUMPY[kind]).itemsize
            memory = (ctypes.c_ubyte * nbytes).from_address(state["addresses"][name])
            arrays[name] = np.frombuffer(memory, NUMPY[kind]).reshape(shape)
        wanted = {item.name: item.type for item in state["session"].get_inputs()}
        feeds = {n: arrays[n].astype(np.int64) if "int64" in kind else arrays[n] for n, kind in wanted.items()}
        names = [item.name for item in state["session"].get_outputs()]
        for name, value in zip(names, state["session"].run(names, feeds)):
            arrays[name][...] = value
        return True


class Copying(Stream):
    def upload(self, address, array):
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array, address):
        ctypes.memmove(array.ctypes.data, address, array.nbytes)


class Device(Context):
    def stream(self):
        return Copying()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from crispseg.export.crm import crm_graphs

    files = {name: graph.SerializeToString() for name, graph in crm_graphs(fill_crm.model()).items()}
    return write_mask_bundle(tmp_path_factory.mktemp("crm") / "b", name="crm", refiner=INFO, files=files)


@pytest.fixture(scope="module")
def scene():
    random = np.random.default_rng(0)
    image = np.kron(random.integers(0, 256, (9, 12, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))[:89, :113]
    mask = np.zeros((89, 113), np.uint8)
    mask[20:60, 30:80] = 255
    return np.ascontiguousarray(image), mask


@pytest.fixture(scope="module")
def wanted(bundle, scene):
    with crm.open_crm(bundle, threads=1) as engine:
        return engine.refine(scene[0], scene[1].astype(np.float32) / 255)


def use(monkeypatch, trt):
    monkeypatch.setattr(compat, "require", lambda *_: trt)
    monkeypatch.setattr(cuda, "open_device", lambda *_: Device())


@pytest.mark.parametrize(("version", "precision"), [("8.6.1", "fp32"), ("11.4.0.106", "fp16")])
def test_build_and_refine(bundle, scene, wanted, monkeypatch, capsys, version, precision):
    trt = make(version, Computing)
    use(monkeypatch, trt)
    options = RefineOptions(backend="tensorrt", precision=precision)
    with pytest.raises(EnvironmentMismatch, match="backbone.*crispseg build .* --precision " + precision):
        open_mask_refiner(bundle, options)
    command = ["build", str(bundle.path), "--backend", "tensorrt", "--precision", precision, "--json"]
    assert main([*command, "--baseline"]) == 2
    assert "--baseline: expected a segmentation bundle, found a mask refiner" in capsys.readouterr().err
    rows = []
    for _ in range(2):
        assert main(command) == 0
        rows += json.loads(capsys.readouterr().out)["engines"]
    assert [(row["part"], row["computes_in"], row["engine"]) for row in rows] == [
        (part, "fp32" if part == "decoder" else precision, state)
        for state in ("built", "kept")
        for part in ("backbone", "fusion", "decoder")
    ]
    refiner = open_mask_refiner(bundle, options)
    found = refiner.refine(*scene)
    refiner.close()
    assert refiner.describe()["backend"] == "tensorrt"
    difference = np.abs(found.probability - wanted)
    assert wanted.std() > 0.003
    assert difference.max() <= (1e-6 if precision == "fp32" else 2e-3)


def test_types_of_the_engines(bundle, tmp_path, monkeypatch):
    """fp16: the decoder keeps every float32 tensor and no TF32; the others multiply in float16."""
    trt, made = make("10.13.3.9", Computing), {}
    store = masks_crm.build_network

    def keep(*args, **named):
        row = store(*args, **named)
        path = next((args[0].path / "engines").glob(row["key"] + "*"))
        made[row["part"]] = json.loads((path / (row["part"] + ".engine")).read_bytes()[4:])
        return row

    monkeypatch.setattr(masks_crm, "build_network", keep)
    copy = write_mask_bundle(tmp_path / "b", name="crm", refiner=INFO, files={n: bundle.file(n) for n in INFO.networks})
    profiles = crm_profiles(INFO)
    masks_crm.build_crm_engines(copy, BuildOptions("fp16"), profiles, convert, Device(), trt=trt)
    for role, plan in made.items():
        model = onnx.load_from_string(base64.b64decode(plan["onnx"]))
        half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
        assert half == (role != "decoder")
        assert ("TF32" in plan["cleared"]) == (role == "decoder")
        assert sorted(plan["profile"]) == sorted(profiles[role])
    other = {**profiles, "backbone": {"picture": ((1, 4, 8, 8), (1, 4, 64, 64), (1, 4, 64, 64))}}
    with pytest.raises(EnvironmentMismatch, match="profiles: expected"):
        masks_crm.load_crm_engines(copy, other, Device(), trt=trt)
    networks = masks_crm.load_crm_engines(copy, profiles, Device(), trt=trt)
    with pytest.raises(InputError, match="inside the profile"):
        networks["backbone"].run({"picture": np.zeros((1, 4, 8, crm_tiles.TILE_SIDE + 8), np.float32)})


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (1437, 2600)])
def test_every_shape_lies_in_the_profile(size, monkeypatch):
    """The loop of the run time with networks that only look at what they are given."""
    profiles, seen = crm_profiles(INFO), {}

    def zeros(*shape):
        return np.broadcast_to(np.float32(0), shape)

    def network(name, inputs, outputs, answer):
        def run(given):
            for key, (low, _, high) in profiles[name].items():
                shape = given[key].shape
                assert len(shape) == len(low)
                assert all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True)), (name, key, shape)
                seen[key] = max(seen.get(key, 0), *shape[-2:])
            return answer(given)

        ports = [{n: (np.float32, shape) for n, shape in group.items()} for group in (inputs, outputs)]
        return types.SimpleNamespace(run=run, inputs=ports[0], outputs=ports[1], path=name, close=lambda: None)

    def maps(given):
        sides = [given["picture"].shape[2:]]
        for _ in range(3):
            sides.append([-(-n // 2) for n in sides[-1]])
        return {
            n: zeros(1, c, *s) for n, c, s in zip(("first", "second", "third"), (64, 64, 128), sides[1:], strict=True)
        }

    shapes = {"projected": (1, 68, 32, 36), **dict.fromkeys(crm._PORTS["decoder"][0][1:], ())}
    projected = {"fusion": lambda g: {"projected": zeros(1, g["first"].shape[3] - 2, 32, g["first"].shape[2] - 2)},
                 "backbone": maps, "decoder": lambda g: {"logits": zeros(*INFO.block)}}  # fmt: skip
    networks = {}
    for name, (inputs, outputs) in crm._PORTS.items():
        known = shapes if name == "decoder" else dict.fromkeys(inputs, ())
        networks[name] = network(name, known, dict.fromkeys(outputs, INFO.block), projected[name])
    monkeypatch.setattr(crm, "picture_window", lambda i, m, a, r, window, *_: zeros(1, 4, *(b - c for c, b in window)))
    engine = crm.CrmEngine(INFO, networks, tile_side=crm_tiles.TILE_SIDE)
    engine.refine(np.zeros((*size, 3), np.uint8), np.ones(size, np.float32))
    if size == (1437, 2600):  # and the profile is no larger than it must be
        assert seen["picture"] > 0.7 * crm_tiles.TILE_SIDE
        assert seen["first"] > 0.9 * profiles["fusion"]["first"][2][2]
