"""The dense U-Net of SegRefiner: residual blocks with a time bias, self-attention at the two coarsest strides.

Modules nest so that the state dict has the keys of the official checkpoints. To walk the network without a key:

    unet.stem                    Conv2d 4 -> c
    unet.stages()                (name, parts) of every block in the order they run; a part is a Residual, Attention,
                                 Down or Up
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32
EPSILON = 1e-5
Probe = Callable[[str, Tensor], None]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups."""
    return nn.GroupNorm(GROUPS, channels, EPSILON)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))); the skip is a 1x1 convolution when the channels change."""

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        """Channels in and out, and the width of the time vector."""
        super().__init__()
        self.in_layers = nn.Sequential(group_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, outputs))
        # Identity stands in for the dropout, which the official networks have at 0.
        self.out_layers = nn.Sequential(
            group_norm(outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Float [N, Cin, H, W] and [N, E] -> [N, Cout, H, W]."""
        y = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(y)


class Attention(nn.Module):
    """Self-attention over the cells, added to the input. The channels of qkv are head-major: q, k, v of each head."""

    def __init__(self, channels: int, heads: int) -> None:
        """Channels must be a multiple of the heads."""
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Optional[Tensor] = None) -> Tensor:
        """Float [N, C, H, W] -> [N, C, H, W]; the time vector has no part in it."""
        count, channels = x.shape[:2]
        tokens = x.flatten(2)
        width = channels // self.heads
        parts = self.qkv(self.norm(tokens)).view(count, self.heads, 3, width, -1)
        scale = width**-0.25  # on q and on k: smaller numbers before the product
        q, k, v = parts[:, :, 0] * scale, parts[:, :, 1] * scale, parts[:, :, 2]
        share = torch.softmax((q.transpose(2, 3) @ k).float(), -1).to(x.dtype)
        mixed = (v @ share.transpose(2, 3)).reshape(count, channels, -1)
        return x + self.proj_out(mixed).view_as(x)


class Down(nn.Module):
    """3x3 convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        """Channels stay."""
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Optional[Tensor] = None) -> Tensor:
        """Float [N, C, H, W] -> [N, C, H/2, W/2]."""
        return self.op(x)


class Up(nn.Module):
    """Every cell twice in either direction, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        """Channels stay."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Optional[Tensor] = None) -> Tensor:
        """Float [N, C, H, W] -> [N, C, 2H, 2W]."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class MaskUNet(nn.Module):
    """[RGB, mask] and a time step -> one logit map of the same size."""

    def __init__(
        self, channels: int, multipliers: Sequence[int], repeats: int, attention: Sequence[int], heads: int, steps: int
    ) -> None:
        """As in ``SegRefinerConfig``."""
        super().__init__()
        width = 4 * channels
        self.time_embed = nn.Embedding(steps, width)
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, channels, 3, padding=1))])
        now, skips, last = channels, [channels], len(multipliers) - 1
        for level, multiplier in enumerate(multipliers):
            for _ in range(repeats):
                parts: list[nn.Module] = [Residual(now, channels * multiplier, width)]
                now = channels * multiplier
                parts += [Attention(now, heads)] if 2**level in attention else []
                self.input_blocks.append(nn.Sequential(*parts))
                skips.append(now)
            if level < last:
                self.input_blocks.append(nn.Sequential(Down(now)))
                skips.append(now)
        self.middle_block = nn.Sequential(Residual(now, now, width), Attention(now, heads), Residual(now, now, width))
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for index in range(repeats + 1):
                parts = [Residual(now + skips.pop(), channels * multipliers[level], width)]
                now = channels * multipliers[level]
                parts += [Attention(now, heads)] if 2**level in attention else []
                parts += [Up(now)] if level and index == repeats else []
                self.output_blocks.append(nn.Sequential(*parts))
        self.out = nn.Sequential(group_norm(now), nn.SiLU(), nn.Conv2d(now, 1, 3, padding=1))

    @property
    def stem(self) -> nn.Conv2d:
        """The first convolution."""
        first: Any = self.input_blocks[0]
        return first[0]

    def stages(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """(name, parts) of every block after the stem, in order. A block named output_... first takes its skip in."""
        for index, block in enumerate(self.input_blocks):
            if index:
                yield f"input_blocks.{index}", tuple(_parts(block))
        yield "middle_block", tuple(self.middle_block)
        for index, block in enumerate(self.output_blocks):
            yield f"output_blocks.{index}", tuple(_parts(block))

    def forward(self, x: Tensor, t: Tensor, probe: Optional[Probe] = None) -> Tensor:
        """Logits.

        Args:
            x: float [N, 4, H, W], sides multiples of 2 ** (levels - 1).
            t: int [N], the time step of each picture.
            probe: called with (name of the block, its result) after every block.

        Returns:
            Float [N, 1, H, W].
        """
        tell = probe or (lambda *_: None)
        time = self.time_embed(t)
        h = self.stem(x)
        tell("input_blocks.0", h)
        skips = [h]
        for name, parts in self.stages():
            if name.startswith("output"):
                h = torch.cat([h, skips.pop()], 1)
            for part in parts:
                h = part(h, time)
            if name.startswith("input"):
                skips.append(h)
            tell(name, h)
        return self.out(h)


def _parts(block: Any) -> Iterator[nn.Module]:
    return iter(block)
