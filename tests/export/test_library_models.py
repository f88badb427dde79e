"""Networks of an installed library by name. The libraries here are small pretenders with the functions in use."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from crispseg.classes import ClassInfo  # noqa: E402
from crispseg.cli_foreign import chosen_base  # noqa: E402
from crispseg.errors import CheckpointError, EnvironmentMismatch, InputError  # noqa: E402
from crispseg.export import library_models, project  # noqa: E402
from crispseg.export.sources import Foreign  # noqa: E402
from crispseg.export.verify import verify_bundle  # noqa: E402
from crispseg.runtime.prepare import prepared_frames  # noqa: E402

torch.set_num_threads(1)

C = 5
CLASSES = [ClassInfo(f"c{i}", (i, i, i)) for i in range(C)]


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 4, 1)

    def forward(self, x):
        y = F.relu(self.conv(x))
        return {"out": y, "aux": y}


class Vision(nn.Module):
    """As torchvision's: backbone, classifier, resize, a dictionary."""

    def __init__(self, num_classes, pooled=False):
        super().__init__()
        self.backbone, self.classifier = Backbone(), nn.Conv2d(8, num_classes, 1)
        self.pool = nn.AdaptiveAvgPool2d((None, 3)) if pooled else None

    def forward(self, x):
        y = self.classifier(self.backbone(x)["out"])
        if self.pool is not None:
            y = F.interpolate(self.pool(y), size=y.shape[2:], mode="bilinear")
        return {"out": F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)}


class Unet(nn.Module):
    """As smp's: refuses sides that 32 does not divide; ends at the size of its input."""

    def __init__(self, classes, stride):
        super().__init__()
        self.encoder = nn.Conv2d(3, classes, 3, 2, 1)
        self.encoder.output_stride = stride
        self.requires_divisible_input_shape = True

    def forward(self, x):
        stride = self.encoder.output_stride
        if x.shape[2] % stride or x.shape[3] % stride:
            raise RuntimeError(f"Wrong input shape {tuple(x.shape)}")
        return F.interpolate(self.encoder(x), scale_factor=2, mode="bilinear")


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    models = types.ModuleType("torchvision.models")
    models.segmentation = object()
    models.list_models = lambda module: ["vision", "pooled"]
    builders = {"vision": Vision, "pooled": lambda num_classes: Vision(num_classes, True)}

    def get_model(name, weights, weights_backbone, **options):
        assert weights is None
        assert weights_backbone is None
        return builders[name](**options)

    class Weights:
        @staticmethod
        def transforms():
            return types.SimpleNamespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])

    class Listed(list):
        __name__ = "Vision_Weights"

    models.get_model, models.get_model_weights = get_model, lambda name: Listed([Weights])
    vision = types.ModuleType("torchvision")
    vision.__version__, vision.models = "9.9", models
    smp = types.ModuleType("segmentation_models_pytorch")
    smp.__version__ = "8.8"

    def create_model(arch, encoder_name, encoder_weights, in_channels, classes, stride=32):
        if arch.lower() != "unet":
            raise KeyError(f"Wrong architecture type `{arch}`")
        return Unet(classes, stride)

    def params(encoder):
        if encoder == "unknown":
            raise ValueError("no such file")
        space, top = ("BGR", 255) if encoder == "caffe" else ("RGB", 1)
        return {"mean": [0.5, 0.25, 0.125], "std": [1.0, 2.0, 3.0], "input_space": space, "input_range": [0, top]}

    smp.create_model = create_model
    smp.encoders = types.SimpleNamespace(get_preprocessing_params=params)
    for name, module in (("torchvision", vision), ("torchvision.models", models), (smp.__name__, smp)):
        monkeypatch.setitem(sys.modules, name, module)
    return types.SimpleNamespace(create=create_model)


def export(tmp_path, spec, weights=None, **options):
    base = options.pop("base", None) or Foreign(library=spec)
    options.setdefault("random_weights", weights is None)
    return project.export_bundle(
        base, tmp_path / "b", weights=weights, refiner=None, height=40, width=90, scale=0.5, classes=CLASSES, **options
    )


def saved(tmp_path, net, **more):
    torch.manual_seed(2)
    for p in net.parameters():
        nn.init.normal_(p)
    torch.save({**net.state_dict(), **more}, tmp_path / "w.pth")
    return net.eval(), tmp_path / "w.pth"


def run(made):
    x = np.random.default_rng(1).standard_normal((1, 3, 20, 45)).astype(np.float32)
    session = ort.InferenceSession(str(made.file("base.onnx")), providers=["CPUExecutionProvider"])
    return torch.from_numpy(x), session.run(["logits"], {"image": x})[0]


def test_torchvision(tmp_path):
    aux = {"aux_classifier.0.weight": torch.zeros(2)}
    net, weights = saved(tmp_path, Vision(C), **aux)
    made = export(tmp_path, "torchvision:vision", weights)
    x, logits = run(made)
    with torch.no_grad():
        wanted = net.classifier(net.backbone(x)["out"])
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-5)  # before its own resize
    assert made.base.architecture == "torchvision:vision"
    assert made.base.mean == pytest.approx((25.5, 51, 76.5))
    assert made.base.std == pytest.approx((102, 127.5, 153))
    assert (made.base.channel_order, made.base.upsample) == ("rgb", "bilinear")
    notes = made.provenance["base"]
    assert notes["package"] == "torchvision 9.9"
    assert notes["preprocessing"] == "of torchvision's Vision_Weights"
    assert notes["dropped"]["keys"] == 1
    assert notes["assumed"] == []
    assert not made.base.random_weights
    report = verify_bundle(made.path, prepared_frames, weights=weights, frames=1, threads=1)
    assert report["passed"] is True
    assert report["hops"][0]["hop"] == "torch -> onnxruntime"


def test_a_network_with_more_behind_its_classifier_is_taken_whole(tmp_path):
    net, weights = saved(tmp_path, Vision(C, pooled=True))
    made = export(tmp_path, "torchvision:pooled", weights)
    x, logits = run(made)
    assert (made.base.logits_height, made.base.logits_width) == (20, 45)
    with torch.no_grad():
        np.testing.assert_allclose(logits, net(x)["out"].numpy(), atol=1e-5)
    # The pool, whose bins do not divide the map, is a product with constant matrices.
    kinds = [n.op_type for n in onnx.load(str(made.file("base.onnx"))).graph.node]
    assert kinds.count("MatMul") == 2
    assert not {"AveragePool", "Shape", "Gather"} & set(kinds)


@pytest.mark.parametrize(
    ("encoder", "mean", "order"), [("r", (127.5, 63.75, 31.875), "rgb"), ("caffe", (0.5, 0.25, 0.125), "bgr")]
)
def test_smp_pads_inside(tmp_path, libraries, encoder, mean, order):
    net, weights = saved(tmp_path, Unet(C, 32))
    made = export(tmp_path, f"smp:Unet:{encoder}", weights)
    assert (made.base.mean, made.base.channel_order) == (mean, order)
    x, logits = run(made)
    with torch.no_grad():
        wanted = net(F.pad(x, (0, 19, 0, 12)))[:, :, :20, :45]
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-5)
    assert "multiples of 32 (20x45 -> 32x64)" in made.provenance["base"]["padding"]


def test_what_the_user_says_goes_before_the_library(tmp_path):
    base = chosen_base(
        "smp:unet:r", None, None, '{"stride": 4}', [], None, "1,2,3", "4,5,6", "bgr", "nearest"
    )  # a fake builder's argument
    made = export(tmp_path, "", base=base)
    found = made.base
    assert (found.mean, found.std, found.channel_order, found.upsample) == ((1, 2, 3), (4, 5, 6), "bgr", "nearest")
    assert "multiples of 4" in made.provenance["base"]["padding"]
    assert "preprocessing" not in made.provenance["base"]
    assert found.random_weights
    assert made.provenance["base"]["random_weights"] is True


def test_missing_preprocessing_data_are_said(tmp_path):
    made = export(tmp_path, "smp:Unet:unknown")
    assert made.base.mean == (123.675, 116.28, 103.53)
    assumed = made.provenance["base"]["assumed"]
    assert "ImageNet" in assumed[0]
    assert "gives no preprocessing data for unknown (ValueError: no such file)" in assumed[1]


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("torchvision:nothing", InputError, "expected one of vision, pooled"),
        ("torchvision:", InputError, "expected torchvision:NAME"),
        ("timm:x", InputError, "expected torchvision:NAME or smp:ARCHITECTURE:ENCODER"),
        ("smp:Unet", InputError, "for example smp:Unet:resnet34"),
        ("smp:Foo:r", InputError, "Wrong architecture type `Foo`"),
    ],
)
def test_unknown_names(tmp_path, spec, error, match):
    with pytest.raises(error, match=match):
        export(tmp_path, spec)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_needed_and_must_fit(tmp_path):
    with pytest.raises(InputError, match="expected --weights"):
        export(tmp_path, "torchvision:vision", random_weights=False)
    _, weights = saved(tmp_path, Vision(C + 1))
    with pytest.raises(CheckpointError, match="2 of another shape: classifier"):
        export(tmp_path, "torchvision:vision", weights)


def test_packages_that_are_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    for spec, pip in (("torchvision:vision", "torchvision"), ("smp:Unet:r", "segmentation-models-pytorch")):
        with pytest.raises(EnvironmentMismatch, match=f"found none; pip install {pip}$"):
            library_models.open_library(Foreign(library=spec), C, None, (32, 32))


def test_a_package_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "segmentation_models_pytorch.py").write_text("import no_such_backbone\n")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    for name in ("torchvision", "segmentation_models_pytorch"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EnvironmentMismatch, match=r"cannot be imported .*; pip install no_such_backbone"):
        library_models.open_library(Foreign(library="smp:Unet:r"), C, None, (32, 32))
    with pytest.raises(EnvironmentMismatch, match="nms does not exist.*install the build of it that belongs to torch"):
        library_models.open_library(Foreign(library="torchvision:vision"), C, None, (32, 32))
