"""Blocks of the networks that are published as MMSegmentation checkpoints; module names follow those files."""

from __future__ import annotations

from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.blocks import spatial

__all__ = [
    "FFN",
    "ConvModule",
    "LayerNorm",
    "concatenate",
    "layer_norm",
    "resize",
    "spatial",
    "to_map",
    "to_tokens",
]


def resize(x: Tensor, size: Tuple[int, int]) -> Tensor:
    """Bilinear resize of [N,C,h,w] with half-pixel centres, the only resize of these networks."""
    return x if spatial(x) == tuple(size) else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def concatenate(maps: Sequence[Tensor]) -> Tensor:
    """Resize all maps [N,Ci,h,w] to the first one's size and join their channels."""
    size = spatial(maps[0])
    return torch.cat([resize(x, size) for x in maps], dim=1)


def to_tokens(x: Tensor) -> Tensor:
    """[N,C,h,w] -> [N,h*w,C]."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, size: Tuple[int, int]) -> Tensor:
    """[N,h*w,C] -> [N,C,h,w]."""
    return x.transpose(1, 2).reshape(int(x.shape[0]), int(x.shape[2]), *size)


class ConvModule(nn.Module):
    """1x1 convolution without bias, then ``bn`` or ``gn`` (32 groups) and ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: str = "bn", *, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm_name = norm
        self.add_module(norm, nn.BatchNorm2d(outputs) if norm == "bn" else nn.GroupNorm(32, outputs))
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,outputs,h,w]."""
        y = getattr(self, self.norm_name)(self.conv(x))
        return F.relu(y) if self.relu else y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalisation of [...,C] over its last axis.

    In an exported graph it is written out: TensorRT 8.5 has no LayerNormalization.
    """
    if not torch.onnx.is_in_onnx_export():
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    centred = x - x.mean(-1, keepdim=True)
    # A product, not a power: ONNX Runtime 1.31 fuses the form with Pow even across casts, and then refuses the
    # half precision graph, whose LayerNorms stay float32, for its own mixed types.
    deviation = torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps)
    return centred / deviation * weight + bias


class LayerNorm(nn.LayerNorm):
    """Normalisation over the last axis, see ``layer_norm``."""

    def forward(self, x: Tensor) -> Tensor:
        """[...,C] -> same."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class FFN(nn.Module):
    """Two linear layers with ``activation`` between them."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(dim, hidden), activation), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[...,dim] -> same."""
        return self.layers(x)
