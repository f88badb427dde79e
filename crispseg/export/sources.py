"""Where the graph of a base comes from: a name of the catalog, any torch module, or any ONNX file.

A source knows how to write the graph for one size and how to compare it with what it came from. What had to be
assumed about a foreign network is kept as sentences for the bundle's provenance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx

from crispseg.engines.tensorrt.operators import RELEASES, unsupported
from crispseg.errors import InputError
from crispseg.export import dense
from crispseg.export.networks import base_network
from crispseg.models.bases import BaseInfo
from crispseg.models.bases.padding import Padded
from crispseg.plugins.ops import UPSAMPLES


@dataclass(frozen=True)
class Foreign:
    """A base outside the catalog, as its user describes it. One of ``module``, ``onnx`` and ``library`` is given.

    Attributes:
        module: "package.module:factory"; the factory is called and returns an ``nn.Module``.
        onnx: path of an ONNX file.
        library: "torchvision:NAME" or "smp:ARCHITECTURE:ENCODER", a network that an installed library builds.
        arguments: keyword arguments of the factory, or of the library's builder.
        output: key, index or name of the logits when the network returns several things.
        mean: normalisation, units of 0..255; None assumes ImageNet's. So do std and channel_order (RGB).
        std: divides the image after the mean is taken off.
        channel_order: "rgb" or "bgr".
        upsample: how the logits are brought to the image's size; None assumes "bilinear".
        droppable: regular expressions of checkpoint keys that the module may lack.
        pad_to: the module wants sides that are multiples of it; the graph pads the image and crops the logits.
    """

    module: str | None = None
    onnx: str | Path | None = None
    library: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    output: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channel_order: str | None = None
    upsample: str | None = None
    droppable: tuple[str, ...] = ()
    pad_to: int = 1

    @property
    def name(self) -> str:
        """What the user named."""
        return str(self.library or self.module or self.onnx)


class Source(Protocol):
    """A base that can be written as a graph of a fixed size."""

    info: BaseInfo
    random: bool
    notes: dict[str, Any]

    def export(self, height: int, width: int, native: bool) -> onnx.ModelProto:
        """The graph for images of height x width; input "image", output "logits"."""

    def parity(self, model: onnx.ModelProto, threads: int) -> dict[str, Any]:
        """What ``dense.parity`` gives, and the ``hop`` that was compared."""

    def notes_at(self, height: int, width: int) -> dict[str, Any]:
        """What the provenance of the graph for this size says beyond ``notes``."""


@dataclass
class Torch:
    """A torch module."""

    module: Any
    info: BaseInfo
    random: bool
    notes: dict[str, Any]

    def export(self, height: int, width: int, native: bool) -> onnx.ModelProto:
        """Trace the module."""
        return dense.export_dense(self.module, height=height, width=width, low_resolution_logits=native)

    def parity(self, model: onnx.ModelProto, threads: int) -> dict[str, Any]:
        """Compare torch with ONNX Runtime."""
        return {"hop": "torch -> onnxruntime", **dense.parity(self.module, model, threads=threads)}

    def notes_at(self, height: int, width: int) -> dict[str, Any]:
        """How the image is padded inside the graph, for a base that asks for it."""
        if not isinstance(self.module, Padded):
            return {}
        padded = self.module.padded_size(height, width)
        added = f"{height}x{width} -> {padded[0]}x{padded[1]}" if padded != (height, width) else "nothing to add"
        return {
            "padding": f"in the graph: zeros right and bottom of the normalised image to multiples of "
            f"{self.module.multiple} ({added})" + (", logits enlarged and cropped" if padded != (height, width) else "")
        }


def open_source(
    base: str | Foreign, num_classes: int, weights: str | Path | None, size: tuple[int, int], seed: int = 0
) -> Source:
    """The source that ``base`` names.

    Args:
        base: a name of the catalog, or a foreign network.
        num_classes: classes of the logits.
        weights: checkpoint; None takes random weights, or those that a foreign network brings.
        size: height and width of the base's input.
        seed: of random weights.

    Raises:
        InputError: unknown name, or a foreign network that does not fit.
        CheckpointError: the checkpoint is one of another network.
        UnsupportedOp: an ONNX file with operators that cannot be kept.
    """
    if isinstance(base, str):
        net, info = base_network(base, num_classes, weights, seed)
        return Torch(net.module, info, net.random, dict(net.source))
    if sum(given is not None for given in (base.module, base.onnx, base.library)) != 1:
        raise InputError("base: expected one of a name, --module and --onnx")
    if base.library is not None:
        from crispseg.export.library_models import open_library

        return open_library(base, num_classes, weights, size, seed)
    if base.onnx is not None:
        if base.pad_to != 1:
            raise InputError("--pad with --onnx: a file has its own sides; export it with the padding inside")
        if weights is not None:
            raise InputError("--weights with --onnx: the file holds its weights already; leave --weights out")
        from crispseg.export.foreign_onnx import open_onnx

        return open_onnx(base, num_classes, size)
    from crispseg.export.foreign_module import open_module

    return open_module(base, num_classes, weights, size)


def foreign_info(base: Foreign, name: str, stride: int, assumed: list[str]) -> BaseInfo:
    """The record of a foreign base; whatever the user does not say is assumed, and said so in ``assumed``.

    Raises:
        InputError: a setting that cannot be.
    """
    if base.channel_order not in (None, "rgb", "bgr"):
        raise InputError(f"channel order {base.channel_order!r}: expected rgb or bgr")
    if base.upsample not in (None, *UPSAMPLES):
        raise InputError(f"upsample {base.upsample!r}: expected {', '.join(UPSAMPLES)}")
    if base.std is not None and min(base.std) <= 0:
        raise InputError(f"std {base.std}: expected positive numbers")
    standard = BaseInfo(name, stride)
    if base.mean is None and base.std is None:
        assumed.append("images are normalised by ImageNet's mean and deviation (--mean, --std, in units of 0..255)")
    elif base.mean is None or base.std is None:
        raise InputError("mean and std: expected both, found one; give --mean and --std")
    if base.channel_order is None:
        assumed.append("channels are red, green, blue (--channels)")
    if base.upsample is None:
        assumed.append("logits are enlarged bilinearly with half-pixel centres (--base-upsample)")
    return BaseInfo(
        name,
        stride,
        channel_order=base.channel_order or standard.channel_order,
        mean=base.mean or standard.mean,
        std=base.std or standard.std,
        upsample=base.upsample or standard.upsample,
        pad_to=base.pad_to,
    )


def tensorrt_gaps(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Release of TensorRT -> nodes that its operator table does not list; empty when every release takes all."""
    found = {release: unsupported(model, release) for release in RELEASES}
    return {release: gaps for release, gaps in found.items() if gaps}
