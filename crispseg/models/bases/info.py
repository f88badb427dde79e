"""What is known about a base before its network is built. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Figure:
    """A figure that the authors publish. None stands for what they do not say.

    Attributes:
        dataset: "Cityscapes val", "CamVid test"; without a split where the source names none.
        miou: mean IoU, per cent.
        size: height x width of the network's input, px.
        fps: (device as the source names it, frames a second), in the source's order.
        source: where the figure stands.
    """

    dataset: str
    miou: float
    size: str | None = None
    fps: tuple[tuple[str, float], ...] = ()
    source: str = "README"


@dataclass(frozen=True)
class BaseInfo:
    """What a base expects and gives.

    Attributes:
        name: architecture, as on the command line and in bundles.
        stride: of the logits that ``forward_logits`` returns; 1 when the network ends at its input's size.
        channel_order: of the image, "rgb" or "bgr".
        mean: subtracted from the image, per channel, in units of 0..255.
        std: divides the image afterwards, in the same units.
        upsample: how the authors bring the logits to the image's size, a rule of the op SelectPixels.
        pad_to: the authors pad the normalised image with zeros, right and bottom, until both sides are multiples of it.
        paper: title and place.
        droppable: regular expressions of checkpoint keys that no logit depends on.
        refused: regular expression of keys that tell a checkpoint of another layout, and what to do about it.
        classes: of the published weights.
        parameters: that the logits of 19 classes depend on; auxiliary heads are not among them.
        macs: multiply-accumulates of convolutions and matrix products at 1024 x 2048 with 19 classes. Resizing,
            pooling, warping and BatchNorm are not counted.
        figures: what the authors publish.
        checkpoint: what the official files look like.
        code: repository of the official code.
    """

    name: str
    stride: int
    channel_order: str = "rgb"
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD
    upsample: str = "bilinear"
    pad_to: int = 1
    paper: str = ""
    droppable: tuple[str, ...] = ()
    refused: tuple[str, str] | None = None
    classes: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0
    figures: tuple[Figure, ...] = ()
    checkpoint: str = ""
    code: str = ""
