"""Swin Transformer: attention inside windows that every second block shifts.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (ICCV 2021, arXiv 2103.14030). Names and shapes
of the weights are those of MMSegmentation.

Tokens of a map lie in one matrix [N*h*w, C]. Padding, shift and partition into windows are one selection of its rows,
by an index that depends on the size alone; another one brings them back. In an exported graph both are constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.mmseg import FFN, LayerNorm, layer_norm, spatial, to_tokens

# Added to the score of two tokens of one window that were no neighbours before the shift. The original adds -100, and
# the softmax then gives numbers so small that processors multiply them many times slower; this gives 0.
APART = -1e4


@dataclass(frozen=True)
class Windows:
    """How tokens go into windows and come back.

    Attributes:
        take: int64 [N*windows*window**2], row of each place; the row behind the last token is padding.
        back: int64 [N*h*w], place of each token.
        mask: [N*windows, 1, window**2, window**2], 0 or ``APART``; None without a shift.
        padded: True when some places hold no token.
    """

    take: Tensor
    back: Tensor
    mask: Tensor | None
    padded: bool


@lru_cache(maxsize=16)
def windows_of(batch: int, size: tuple[int, int], window: int, shift: int, device: torch.device) -> Windows:
    """The windows of a map of ``size``, padded right and bottom to multiples of ``window``, then shifted."""
    height, width = size
    full = [-(-n // window) * window for n in size]
    rows = np.full((batch, *full), batch * height * width, np.int64)
    rows[:, :height, :width] = np.arange(batch * height * width).reshape(batch, height, width)
    take = _partition(np.roll(rows, (-shift, -shift), (1, 2)), window).reshape(-1)
    back = np.empty(batch * height * width, np.int64)
    real = np.flatnonzero(take < back.size)
    back[take[real]] = real
    mask = None
    if shift:
        # After the shift the last windows hold parts of opposite borders.
        region = [np.searchsorted([n - window, n - shift], np.arange(n), side="right") for n in full]
        parts = _partition((3 * region[0][:, None] + region[1])[None].repeat(batch, 0), window)
        mask = np.zeros((len(parts), 1, window**2, window**2), np.float32)
        mixed = np.flatnonzero(parts.min(1) < parts.max(1))
        mask[mixed, 0] = np.where(parts[mixed, :, None] == parts[mixed, None], 0, APART)
    with torch.inference_mode(False):
        index = [torch.from_numpy(values).to(device) for values in (take, back)]
        blocked = None if mask is None else torch.from_numpy(mask).to(device)
    return Windows(index[0], index[1], blocked, real.size < take.size)


def _partition(maps: np.ndarray, window: int) -> np.ndarray:
    n, height, width = maps.shape
    blocks = maps.reshape(n, height // window, window, width // window, window).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(-1, window * window)


def _place(x: Tensor, nothing: Tensor, windows: Windows) -> Tensor:
    """Tokens [N*h*w, C] into their windows' places; places of the padding get ``nothing`` [C]."""
    rows = torch.cat([x, nothing[None]]) if windows.padded else x
    return rows.index_select(0, windows.take)


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.tokens = heads, window * window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        y, x = (n.reshape(-1) for n in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        index = (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)
        # A constant: checkpoints hold it, and their copies are not read.
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """Tokens [N*h*w, dim] of the map that ``windows`` divides -> same.

        In an exported graph the linear layers see tokens only. Otherwise they also see the padding, as in the original,
        where it is up to half of all places of a small map.
        """
        dim, exporting = self.proj.in_features, torch.onnx.is_in_onnx_export()
        if not exporting:
            x = _place(x, x.new_zeros(dim), windows)
        q = self._project(x, 0, windows, (dim // self.heads) ** -0.5).transpose(1, 2)
        k, v = self._project(x, 1, windows).permute(0, 2, 3, 1), self._project(x, 2, windows).transpose(1, 2)
        scores = q @ k + self._bias()
        if windows.mask is not None:
            scores = scores + windows.mask
        mixed = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(-1, dim)
        if exporting:
            return self.proj(mixed.index_select(0, windows.back))
        return self.proj(mixed).index_select(0, windows.back)

    def _project(self, x: Tensor, third: int, windows: Windows, scale: float = 1.0) -> Tensor:
        dim = self.proj.in_features
        rows = slice(third * dim, (third + 1) * dim)
        weight, bias = self.qkv.weight[rows], self.qkv.bias[rows]
        if scale != 1:  # goes to the weights: an export folds it
            weight, bias = weight * scale, bias * scale
        y = F.linear(x, weight, bias)
        if torch.onnx.is_in_onnx_export():
            y = _place(y, bias, windows)
        return y.reshape(-1, self.tokens, self.heads, dim // self.heads)

    def _bias(self) -> Tensor:
        values = self.relative_position_bias_table[self.relative_position_index.reshape(-1)]
        return values.reshape(self.tokens, self.tokens, self.heads).permute(2, 0, 1)


class Block(nn.Module):
    """Window attention and FFN, each behind a LayerNorm and added."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = nn.ModuleDict({"w_msa": WindowAttention(dim, heads, window)})
        self.norm2 = LayerNorm(dim)
        self.ffn = FFN(dim, 4 * dim, nn.GELU())

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """Tokens [N*h*w, dim] of the map that ``windows`` divides -> same."""
        x = x + self.attn["w_msa"](self.norm1(x), windows)
        return x + self.ffn(self.norm2(x))


def _by_pixel(values: Tensor) -> Tensor:
    # The last axis holds the four pixels of each channel; afterwards all channels of each pixel, which a map gives
    # without moving single numbers.
    rows = values.reshape(-1, int(values.shape[-1]) // 4, 4)
    return rows.transpose(1, 2).reshape(values.shape)


class MergeNorm(nn.LayerNorm):
    """LayerNorm of four pixels' channels, pixel after pixel; its weights are stored channel after channel."""

    def forward(self, x: Tensor) -> Tensor:
        """[...,4*C] -> same."""
        return layer_norm(x, _by_pixel(self.weight), _by_pixel(self.bias), self.eps)


class PatchMerging(nn.Module):
    """2x2 pixels become one: LayerNorm and a linear layer over all their channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = MergeNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [N*h*w, dim] of a map -> tokens of half its size (rounded up) [.., 2*dim], and that size."""
        (height, width), dim = size, int(x.shape[1])
        if height % 2 or width % 2:
            x = F.pad(x.reshape(-1, height, width, dim), (0, 0, 0, width % 2, 0, height % 2))
        half = (height + 1) // 2, (width + 1) // 2
        x = x.reshape(-1, 2, half[1], 2 * dim).transpose(1, 2).reshape(-1, 4 * dim)
        return F.linear(self.norm(x), _by_pixel(self.reduction.weight)), half


class Stage(nn.Module):
    """Blocks, every second one shifted by half a window, and the merging that follows."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, merge: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(Block(dim, heads, window) for _ in range(depth))
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x: Tensor, batch: int, size: tuple[int, int]) -> Tensor:
        """Tokens [batch*h*w, dim] of maps of this size -> same, before the merging."""
        plans = [windows_of(batch, size, self.window, shift, x.device) for shift in (0, self.window // 2)]
        for index, block in enumerate(self.blocks):
            x = block(x, plans[index % 2])
        return x


class PatchEmbed(nn.Module):
    """4x4 pixels become a token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, dim, 4, 4)
        self.norm = LayerNorm(dim)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[N,3,H,W], padded to multiples of 4 -> tokens, and the size of their map."""
        height, width = spatial(image)
        if height % 4 or width % 4:
            image = F.pad(image, (0, -width % 4, 0, -height % 4))
        x = self.projection(image)
        tokens = to_tokens(x).reshape(-1, self.projection.out_channels)
        return self.norm(tokens), spatial(x)


class Swin(nn.Module):
    """Four stages at strides 4 to 32.

    Args:
        dim: channels of the first stage; each of the others has twice as many as the one before.
        depths: blocks of each stage.
        heads: of the first stage; doubled likewise.
        window: side of a window, in tokens; also of maps that are smaller.
    """

    def __init__(self, dim: int, depths: tuple[int, int, int, int], heads: int, window: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.dims = tuple(dim << i for i in range(4))
        self.stages = nn.ModuleList(Stage(self.dims[i], depths[i], heads << i, window, merge=i < 3) for i in range(4))
        for i, channels in enumerate(self.dims):
            self.add_module(f"norm{i}", LayerNorm(channels))

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,3,H,W] -> normalised maps at strides 4, 8, 16, 32 (rounded up), of ``dims`` channels.

        A stage goes on from the map before that normalisation.
        """
        batch = int(image.shape[0])
        x, size = self.patch_embed(image)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x, batch, size)
            y = getattr(self, f"norm{i}")(x).reshape(batch, -1, self.dims[i])
            maps.append(y.transpose(1, 2).reshape(batch, self.dims[i], *size))
            if stage.downsample is not None:
                x, size = stage.downsample(x, size)  # type: ignore[operator]
        return maps
