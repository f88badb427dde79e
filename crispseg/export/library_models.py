"""A base out of an installed model library: ``torchvision:deeplabv3_resnet50``, ``smp:Unet:resnet34``.

The library builds the network, without weights: those come from ``--weights``. Normalisation is read from the library's
own preprocessing data. Nothing here names a model, so whatever the installed version holds can be exported.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.errors import EnvironmentMismatch, InputError
from crispseg.export.foreign_module import choose_logits
from crispseg.export.networks import seeded
from crispseg.export.provenance import checkpoint_notes
from crispseg.export.sources import Foreign, Torch, foreign_info
from crispseg.models.bases.padding import padded
from crispseg.models.checkpoints import load_checkpoint, load_strict

#: Prefix of a name -> (package to import, name on the package index).
PACKAGES = {
    "torchvision": ("torchvision", "torchvision"),
    "smp": ("segmentation_models_pytorch", "segmentation-models-pytorch"),
}


@dataclass
class Built:
    """What a library gives for a name.

    Attributes:
        module: the network, with random weights.
        net: the same behind something that gives its logits; ``module`` itself when None.
        mean: normalisation in units of 0..255; None when the library does not say. So is std.
        std: see mean.
        channel_order: "rgb" or "bgr".
        pad_to: both sides of the image must be multiples of it.
        droppable: checkpoint keys that no logit depends on.
        preprocessing: where mean and std come from, or why they are missing.
    """

    module: nn.Module
    net: nn.Module | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    channel_order: str
    pad_to: int
    droppable: tuple[str, ...]
    preprocessing: str


class BeforeUpsampling(nn.Module):
    """A segmentation network of torchvision; ``forward_logits`` leaves its last resize out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward_logits(self, image: Tensor) -> Tensor:
        """[N,3,H,W] -> logits [N,C,h,w] at the classifier's stride."""
        features = self.module.backbone(image)  # type: ignore[operator]
        return self.module.classifier(features.get("out", features))  # type: ignore[operator]

    def forward(self, image: Tensor) -> Tensor:
        """[N,3,H,W] -> logits [N,C,H,W]."""
        return self.module(image)["out"]


def open_library(
    base: Foreign, num_classes: int, weights: str | Path | None, size: tuple[int, int], seed: int = 0
) -> Torch:
    """Build the network that ``base.library`` names, load its weights, and find its logits.

    Raises:
        EnvironmentMismatch: the package is not installed, or cannot be loaded.
        InputError: the library has no such network, or refuses its arguments.
        CheckpointError: the checkpoint does not fit.
    """
    spec = str(base.library)
    kind, _, rest = spec.partition(":")
    if kind not in PACKAGES or not rest:
        raise InputError(f"base {spec!r}: expected torchvision:NAME or smp:ARCHITECTURE:ENCODER")
    package = _package(spec, *PACKAGES[kind])
    with seeded(seed):
        built = (_torchvision if kind == "torchvision" else _smp)(package, spec, num_classes, dict(base.arguments))
    assumed: list[str] = []
    notes: dict[str, Any] = {
        "library": spec,
        "package": f"{PACKAGES[kind][1]} {getattr(package, '__version__', '')}".strip(),
        "arguments": dict(base.arguments),
    }
    if weights is None:
        notes.update(random_weights=True, seed=seed)
    else:
        droppable = (*built.droppable, *base.droppable)
        notes.update(
            checkpoint_notes(weights, load_strict(built.module, load_checkpoint(weights), droppable, str(weights)))
        )
    if base.mean is None and base.std is None:
        base = dataclasses.replace(base, mean=built.mean, std=built.std)
        notes["preprocessing"] = built.preprocessing
    base = dataclasses.replace(
        base,
        channel_order=base.channel_order or built.channel_order,
        upsample=base.upsample or "bilinear",
        pad_to=max(base.pad_to, built.pad_to),
    )
    net, stride = choose_logits((built.net or built.module).eval(), base, num_classes, size, assumed)
    info = foreign_info(base, spec, stride, assumed)
    if base.mean is None:
        assumed.append(built.preprocessing)
    notes.update(stride=stride, assumed=assumed)
    return Torch(padded(net, info).eval(), info, weights is None, notes)


def _package(spec: str, name: str, pip: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        found = "none" if missing == name else f"one that cannot be imported ({error})"
        raise EnvironmentMismatch(
            f"{spec}: expected the package {name}, found {found}; pip install {missing if missing != name else pip}"
        ) from None
    except Exception as error:  # a compiled part that does not belong to this torch
        text = str(error).strip().splitlines()
        raise EnvironmentMismatch(
            f"{spec}: the package {name} cannot be loaded ({text[0][:120] if text else type(error).__name__}); "
            f"install the build of it that belongs to torch {torch.__version__}"
        ) from None


def _torchvision(package: Any, spec: str, num_classes: int, arguments: Mapping[str, Any]) -> Built:
    models = importlib.import_module(f"{package.__name__}.models")
    name = spec.partition(":")[2]
    known = models.list_models(module=models.segmentation)
    if name not in known:
        raise InputError(f"{spec}: expected one of {', '.join(known)} (torchvision {package.__version__})")
    module = _build(
        spec, models.get_model, name, {"weights": None, "weights_backbone": None, "num_classes": num_classes}, arguments
    )
    transforms, found = None, models.get_model_weights(name)
    for entry in found:
        transforms = entry.transforms()
        break
    net: nn.Module | None = BeforeUpsampling(module)
    if not _same_logits(net, module):
        net = None  # another kind of network: its output is taken as it is
    mean, std = (_scaled(getattr(transforms, key, None), 255.0) for key in ("mean", "std"))
    where = f"of torchvision's {found.__name__}" if mean and std else "torchvision has no preprocessing data for it"
    return Built(module, net, mean, std, "rgb", 1, (r"aux_classifier\.",), where)


def _same_logits(net: Any, module: nn.Module) -> bool:
    """Whether the logits before the last resize are those of the network."""
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            full = F.interpolate(net.forward_logits(image), size=(64, 96), mode="bilinear", align_corners=False)
            return torch.equal(full, net(image))
    except (AttributeError, KeyError, TypeError):
        return False
    finally:
        module.train(training)


def _smp(package: Any, spec: str, num_classes: int, arguments: Mapping[str, Any]) -> Built:
    _, _, rest = spec.partition(":")
    architecture, _, encoder = rest.partition(":")
    if not encoder:
        raise InputError(f"{spec}: expected smp:ARCHITECTURE:ENCODER, for example smp:Unet:resnet34")
    fixed = {"encoder_name": encoder, "encoder_weights": None, "in_channels": 3, "classes": num_classes}
    module = _build(spec, package.create_model, architecture, fixed, arguments)
    pad_to = 1
    if getattr(module, "requires_divisible_input_shape", True):
        pad_to = int(getattr(getattr(module, "encoder", None), "output_stride", 32))
    try:
        params = package.encoders.get_preprocessing_params(encoder)
        scale = 255.0 if float((params.get("input_range") or (0, 1))[1]) == 1.0 else 1.0
        mean, std = _scaled(params["mean"], scale), _scaled(params["std"], scale)
        order = str(params.get("input_space", "RGB")).lower()
        where = f"of segmentation_models_pytorch for {encoder}"
    except Exception as error:  # it may want a file from a server
        mean = std = None
        order = "rgb"
        text = str(error).strip().splitlines()
        where = (
            f"segmentation_models_pytorch gives no preprocessing data for {encoder} "
            f"({type(error).__name__}: {text[0][:80] if text else ''})"
        )
    return Built(module, None, mean, std, order, pad_to, (r"classification_head\.",), where)


def _build(spec: str, factory: Any, name: str, fixed: Mapping[str, Any], arguments: Mapping[str, Any]) -> nn.Module:
    both = sorted(set(fixed) & set(arguments))
    if both:
        raise InputError(f"{spec}: --module-args {', '.join(both)}: crispseg sets these itself; leave them out")
    try:
        module = factory(name, **fixed, **arguments)
    except Exception as error:  # the library may raise anything
        text = str(error).strip().splitlines()
        raise InputError(
            f"{spec}: the library refuses it: {type(error).__name__}: {text[0][:300] if text else ''}"
        ) from None
    return module.eval()


def _scaled(values: Any, factor: float) -> tuple[float, float, float] | None:
    if values is None or len(values) != 3:
        return None
    a, b, c = (round(float(v) * factor, 6) for v in values)
    return a, b, c
