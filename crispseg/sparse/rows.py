"""Rows of active pixels: features read from the image, and refined classes written back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from crispseg.sparse.maps import Size
from crispseg.sparse.select import lowest_argmax


def feature_channels(features: Sequence[str], num_classes: int) -> int:
    """Number of columns that ``pixel_features`` gives for the list of feature names.

    Raises:
        ValueError: a name is not "rgb", "xy", "p" or "p>v".
    """
    width = {"rgb": 3, "xy": 2, "p": num_classes}
    total = 0
    for name in features:
        if name.startswith("p>"):
            float(name[2:])
            total += num_classes
        elif name in width:
            total += width[name]
        else:
            raise ValueError(f"features: expected 'rgb', 'xy', 'p' or 'p>number', found {name!r}")
    return total


def normalised(image: Tensor, channel_order: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Colours uint8 [..., 3] in RGB order -> float32 [..., 3], (value - mean) / std in the network's channel order.

    With "bgr" output channel c is image channel 2 - c; mean and std always belong to the output channel.

    Raises:
        ValueError: another channel order.
    """
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"channel_order: expected 'rgb' or 'bgr', found {channel_order!r}")
    if channel_order == "bgr":
        image = image.flip(-1)
    centre = torch.tensor(tuple(mean), dtype=torch.float32, device=image.device)
    return (image.to(torch.float32) - centre) / torch.tensor(tuple(std), dtype=torch.float32, device=image.device)


def pixel_features(
    image: Tensor,
    coords: Tensor,
    yi: Optional[Tensor] = None,
    *,
    features: Sequence[str] = ("rgb",),
    channel_order: str = "bgr",
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Input rows of the refiner, float32 [N, F], the named features side by side.

    "rgb": normalised colours; "xy": (y / H, x / W); "p": softmax(yi); "p>v": 1 where softmax(yi) > v, else 0.

    Args:
        image: uint8 [B, H, W, 3], RGB.
        coords: int [N, 3], (b, y, x).
        yi: float [N, C] logits at the sites; needed when a feature starts with "p".
        features: names in column order.
        channel_order: of the network, "rgb" or "bgr".
        mean: 3 values in 0..255, by output channel.
        std: 3 values in 0..255, by output channel.

    Raises:
        ValueError: a feature that needs the logits, without them.
    """
    b, y, x = coords.long().unbind(1)
    columns = []
    for name in features:
        if name == "rgb":
            columns.append(normalised(image[b, y, x], channel_order, mean, std))
        elif name == "xy":
            height, width = image.shape[1:3]
            columns.append(torch.stack([y.float() / height, x.float() / width], 1))
        elif yi is None:
            raise ValueError(f"features: {name!r} needs the logits at the sites")
        else:
            p = yi.softmax(1)
            columns.append(p if name == "p" else (p > float(name[2:])).to(p.dtype))
    return torch.cat(columns, 1)


def scatter_labels(labels: Tensor, confidence: Tensor, coords: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of labels and confidence (uint8 [B, H, W]) with the class of rows float [N, C] written at the sites."""
    b, y, x = coords.long().unbind(1)
    labels, confidence = labels.clone(), confidence.clone()
    if coords.shape[0]:
        labels[b, y, x] = lowest_argmax(logits, 1)
        confidence[b, y, x] = (logits.softmax(1).amax(1) * 255).round().to(torch.uint8)
    return labels, confidence


def full_logits(logits: Tensor, coords: Tensor, rows: Tensor) -> Tensor:
    """Copy of full-size logits float [B, C, H, W] with rows float [N, C] written at the sites.

    Costs B * C * H * W floats: for training and tests, never for running.
    """
    b, y, x = coords.long().unbind(1)
    full = logits.clone()
    full[b, :, y, x] = rows.to(full.dtype)
    return full


def image_size(image: Tensor) -> Size:
    """(H, W) of images uint8 [B, H, W, 3].

    Raises:
        ValueError: shape or dtype is another.
    """
    if image.dim() != 4 or image.shape[3] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"image: expected uint8 [B,H,W,3], found {image.dtype} {list(image.shape)}")
    return int(image.shape[1]), int(image.shape[2])
