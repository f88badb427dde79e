"""Mask2Former's pixel decoder: deformable attention over three maps, and the map that masks are made with.

Masked-attention Mask Transformer for Universal Image Segmentation (CVPR 2022, arXiv 2112.01527); Deformable DETR (ICLR
2021, arXiv 2010.04159), section 4.1. Names and shapes of the weights are those of MMSegmentation 1.x.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.mmseg import FFN, LayerNorm, resize, spatial, to_tokens

WIDTH = 256
HEADS, LEVELS, POINTS = 8, 3, 4
LAYERS = 6
TEMPERATURE = 10_000.0

Size = tuple[int, int]


@lru_cache(maxsize=32)
def sine_encoding(size: Size, device: torch.device) -> Tensor:
    """Encoding [h*w, 256] of the pixels of a map: sines and cosines of y, then of x, both in 0..2*pi."""
    channel = np.arange(WIDTH // 2)
    period = TEMPERATURE ** (2 * (channel // 2) / (WIDTH // 2))
    axes = []
    for count in size:
        angle = np.arange(1, count + 1)[:, None] / (count + 1e-6) * (2 * np.pi) / period
        axes.append(np.where(channel % 2, np.cos(angle), np.sin(angle)))
    y, x = axes
    both = [np.broadcast_to(y[:, None], (*size, WIDTH // 2)), np.broadcast_to(x[None], (*size, WIDTH // 2))]
    values = np.concatenate(both, axis=2).reshape(-1, WIDTH).astype(np.float32)
    with torch.inference_mode(False):
        return torch.from_numpy(values).to(device)


@lru_cache(maxsize=16)
def _centres(sizes: tuple[Size, ...], device: torch.device) -> Tensor:
    """Centres [sum h*w, 2] of all maps' pixels, x then y, in the -1..1 of ``grid_sample``."""
    points = []
    for height, width in sizes:
        y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        points.append(np.stack(np.broadcast_arrays(x[None], y[:, None]), axis=2).reshape(-1, 2))
    with torch.inference_mode(False):
        return torch.from_numpy((2 * np.concatenate(points) - 1).astype(np.float32)).to(device)


@lru_cache(maxsize=16)
def _pixel(sizes: tuple[Size, ...], device: torch.device) -> Tensor:
    """A pixel of the sampled map in units of the grid, for each column of the offsets (head, level, point, x or y)."""
    units = np.array([[2 / width, 2 / height] for height, width in sizes], np.float32)
    columns = np.broadcast_to(units[None, :, None], (HEADS, LEVELS, POINTS, 2)).reshape(-1, 1)
    with torch.inference_mode(False):
        return torch.from_numpy(np.ascontiguousarray(columns)).to(device)


class ConvNorm(nn.Module):
    """Convolution, GroupNorm (32 groups), and ReLU when asked."""

    def __init__(self, inputs: int, kernel: int = 1, *, bias: bool = False, relu: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, WIDTH, kernel, padding=kernel // 2, bias=bias)
        self.gn = nn.GroupNorm(32, WIDTH)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,256,h,w]."""
        y = self.gn(self.conv(x))
        return F.relu(y) if self.relu else y


class DeformableAttention(nn.Module):
    """Each pixel of every map reads four points of each map, in each of eight heads."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * LEVELS * POINTS)
        self.value_proj = nn.Linear(WIDTH, WIDTH)
        self.output_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, query: Tensor, x: Tensor, batch: int, sizes: tuple[Size, ...]) -> Tensor:
        """Tokens [batch*pixels, 256] of all maps, with and without their position -> same shape."""
        pixels = sum(h * w for h, w in sizes)
        values = self.value_proj(x).reshape(batch, pixels, WIDTH).transpose(1, 2)
        values = values.reshape(batch * HEADS, WIDTH // HEADS, pixels)
        grid = self._grid(query, batch, sizes)
        weights = self._weights(query, batch)
        total, start = None, 0
        for level, (height, width) in enumerate(sizes):
            source = values[:, :, start : start + height * width].reshape(-1, WIDTH // HEADS, height, width)
            points = slice(level * POINTS, (level + 1) * POINTS)
            # Coordinates, and with them the sampling, are float32 whatever the precision of the features.
            read = F.grid_sample(source.float(), grid[:, points], "bilinear", "zeros", align_corners=False)
            part = (read.to(x.dtype) * weights[:, :, points]).sum(2)  # [batch*heads, channels, pixels]
            total = part if total is None else total + part
            start += height * width
        mixed = total.reshape(batch, WIDTH, pixels).transpose(1, 2)  # type: ignore[union-attr]
        return self.output_proj(mixed.reshape(batch * pixels, WIDTH))

    def _grid(self, query: Tensor, batch: int, sizes: tuple[Size, ...]) -> Tensor:
        """Sampled places [batch*heads, levels*points, pixels, 2] in the -1..1 of ``grid_sample``."""
        # Offsets count pixels of the sampled map. The unit goes to the weights: an export folds it.
        unit = _pixel(sizes, query.device).to(query.dtype)
        layer = self.sampling_offsets
        offsets = F.linear(query, layer.weight * unit, layer.bias * unit[:, 0])
        offsets = offsets.reshape(batch, -1, HEADS, LEVELS * POINTS, 2).permute(0, 2, 3, 1, 4)
        places = offsets.reshape(batch * HEADS, LEVELS * POINTS, -1, 2)
        return places.float() + _centres(sizes, query.device)

    def _weights(self, query: Tensor, batch: int) -> Tensor:
        """Weights [batch*heads, 1, levels*points, pixels]; a head's sum to 1."""
        weights = torch.softmax(self.attention_weights(query).reshape(-1, LEVELS * POINTS), dim=-1)
        weights = weights.reshape(batch, -1, HEADS, LEVELS * POINTS).permute(0, 2, 3, 1)
        return weights.reshape(batch * HEADS, 1, LEVELS * POINTS, -1)


class EncoderLayer(nn.Module):
    """Deformable attention and FFN, each added and then normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = DeformableAttention()
        self.ffn = FFN(WIDTH, 4 * WIDTH, nn.ReLU())
        self.norms = nn.ModuleList(LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor, position: Tensor, batch: int, sizes: tuple[Size, ...]) -> Tensor:
        """Tokens [batch*pixels, 256] of all maps -> same."""
        x = self.norms[0](x + self.self_attn(x + position, x, batch, sizes))
        return self.norms[1](x + self.ffn(x))


class PixelDecoder(nn.Module):
    """Three maps attend to each other; the finest map of the backbone is added for the masks.

    Args:
        dims: channels of the backbone's maps, strides 4 to 32.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.input_convs = nn.ModuleList(ConvNorm(dim, bias=True) for dim in reversed(dims[1:]))
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(EncoderLayer() for _ in range(LAYERS))})
        self.level_encoding = nn.Embedding(LEVELS, WIDTH)
        self.lateral_convs = nn.ModuleList([ConvNorm(dims[0])])
        self.output_convs = nn.ModuleList([ConvNorm(WIDTH, 3, relu=True)])
        self.mask_feature = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Maps at strides 4 to 32 -> map [N,256,h,w] at stride 4 for ``mask_feature``, maps at strides 32, 16, 8."""
        batch = int(maps[0].shape[0])
        inputs = [conv(x) for conv, x in zip(self.input_convs, reversed(maps[1:]))]
        sizes = tuple(spatial(x) for x in inputs)
        level = self.level_encoding.weight
        position = torch.cat(
            [sine_encoding(size, x.device) + level[i] for i, (size, x) in enumerate(zip(sizes, inputs))]
        )
        x = torch.cat([to_tokens(y) for y in inputs], dim=1).reshape(-1, WIDTH)
        position = position.repeat(batch, 1) if batch > 1 else position
        for layer in self.encoder["layers"]:  # type: ignore[union-attr, attr-defined]
            x = layer(x, position, batch, sizes)
        counts = [h * w for h, w in sizes]
        memory = x.reshape(batch, -1, WIDTH).transpose(1, 2)
        outputs = [part.reshape(batch, WIDTH, *size) for part, size in zip(memory.split(counts, 2), sizes)]
        fine = self.lateral_convs[0](maps[0])
        fine = fine + resize(outputs[-1], spatial(fine))
        return self.output_convs[0](fine), outputs
