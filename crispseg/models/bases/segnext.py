"""SegNeXt-L: MSCAN-L, whose attention is made of strip convolutions, and the Hamburger head.

SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation (NeurIPS 2022, arXiv 2209.08575). Names and
shapes of the weights are those of MMSegmentation 1.x.

The head factorises its features into non-negative bases and coefficients. The original draws the first bases at random
in every forward pass, also when it predicts, so its result changes from run to run, and no checkpoint holds them. Here
they are drawn once, with a fixed seed, and become a constant of the exported graph.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.mmseg import ConvModule, LayerNorm, concatenate, resize, spatial, to_map, to_tokens

DIMS = (64, 128, 320, 512)
DEPTHS = (3, 5, 27, 3)
RATIOS = (8, 8, 4, 4)
WIDTH = 1024  # of the head
RANK = 16  # of the factorisation: what MMSegmentation's config sets; no weight depends on it
STEPS = 7
SEED = 0x41AA438  # CRC-32 of b"decode_head.hamburger.ham.bases"


class StripAttention(nn.Module):
    """The spatial gate: a 5x5 and three pairs of strip convolutions, each channel by itself, weigh the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        for index, n in enumerate((7, 11, 21)):
            row = nn.Conv2d(channels, channels, (1, n), padding=(0, n // 2), groups=channels)
            column = nn.Conv2d(channels, channels, (n, 1), padding=(n // 2, 0), groups=channels)
            self.add_module(f"conv{index}_1", row)
            self.add_module(f"conv{index}_2", column)
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N,channels,h,w] -> same."""
        near = self.conv0(x)
        total = near
        for index in range(3):
            row, column = getattr(self, f"conv{index}_1"), getattr(self, f"conv{index}_2")
            total = total + column(row(near))
        return self.conv3(total) * x


class Attention(nn.Module):
    """Projection, GELU, strip attention, projection, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.spatial_gating_unit = StripAttention(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N,channels,h,w] -> same."""
        return self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x)))) + x


class Mlp(nn.Module):
    """1x1, depthwise 3x3, GELU, 1x1."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N,channels,h,w] -> same."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """Attention and MLP, each behind a BatchNorm, scaled by channel and added."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), 1e-2))
        self.norm1 = nn.BatchNorm2d(channels)
        self.attn = Attention(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = Mlp(channels, channels * ratio)

    def forward(self, x: Tensor) -> Tensor:
        """[N,channels,h,w] -> same."""
        x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        first, second = nn.Conv2d(3, half, 3, 2, 1), nn.Conv2d(half, outputs, 3, 2, 1)
        self.proj = nn.Sequential(first, nn.BatchNorm2d(half), nn.GELU(), second, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N,3,h,w] -> [N,outputs,h/4,w/4]."""
        return self.proj(x)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 and BatchNorm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,outputs,h/2,w/2]."""
        return self.norm(self.proj(x))


class MSCAN(nn.Module):
    """Four stages at strides 4 to 32; each one's normalised map feeds the next."""

    def __init__(self) -> None:
        super().__init__()
        for i, (dim, depth, ratio) in enumerate(zip(DIMS, DEPTHS, RATIOS), start=1):
            self.add_module(f"patch_embed{i}", Downsample(DIMS[i - 2], dim) if i > 1 else Stem(dim))
            self.add_module(f"block{i}", nn.ModuleList(Block(dim, ratio) for _ in range(depth)))
            self.add_module(f"norm{i}", LayerNorm(dim, eps=1e-5))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N,3,H,W] -> maps of 64, 128, 320, 512 channels at strides 4, 8, 16, 32 (rounded up)."""
        maps = []
        for i in range(1, 5):
            x = getattr(self, f"patch_embed{i}")(x)
            size = spatial(x)
            for block in getattr(self, f"block{i}"):
                x = block(x)
            x = to_map(getattr(self, f"norm{i}")(to_tokens(x)), size)
            maps.append(x)
        return maps


class Factorisation(nn.Module):
    """Non-negative matrix factorisation by multiplicative steps, from the stored bases."""

    bases: Tensor

    def __init__(self) -> None:
        super().__init__()
        drawn = np.random.Generator(np.random.PCG64(SEED)).uniform(0, 1, (1, WIDTH, RANK))
        drawn32 = drawn.astype(np.float32)
        # No checkpoint holds it: it is a constant of the network.
        self.register_buffer("bases", F.normalize(torch.tensor(drawn32), dim=1), persistent=False)
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Non-negative [N,1024,h,w] -> its approximation of rank 16, same shape."""
        size = spatial(x)
        tokens = to_tokens(x)  # [N,P,D]
        bases = self.bases  # [1,D,R]
        coef = torch.softmax(tokens @ bases, dim=-1)  # [N,P,R]
        features = tokens.transpose(1, 2)
        for _ in range(STEPS):
            coef = self._step(coef, tokens @ bases, bases)
            bases = self._step(bases, features @ coef, coef)
        coef = self._step(coef, tokens @ bases, bases)
        return (bases @ coef.transpose(1, 2)).reshape(int(x.shape[0]), WIDTH, *size)

    def _step(self, factor: Tensor, wanted: Tensor, other: Tensor) -> Tensor:
        return factor * wanted / (factor @ (other.transpose(1, 2) @ other) + self.eps)


class Hamburger(nn.Module):
    """Factorisation between two 1x1 convolutions, added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.ham_in = nn.ModuleDict({"conv": nn.Conv2d(WIDTH, WIDTH, 1)})
        self.ham = Factorisation()
        self.ham_out = ConvModule(WIDTH, WIDTH, "gn", relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N,1024,h,w] -> same."""
        return F.relu(x + self.ham_out(self.ham(F.relu(self.ham_in["conv"](x)))))


class HamHead(nn.Module):
    """The maps at strides 8, 16 and 32, joined at 8, through the Hamburger."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(WIDTH, classes, 1)
        self.squeeze = ConvModule(sum(DIMS[1:]), WIDTH, "gn")
        self.hamburger = Hamburger()
        self.align = ConvModule(WIDTH, WIDTH, "gn")

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps -> logits [N,classes,h,w] at stride 8."""
        return self.conv_seg(self.align(self.hamburger(self.squeeze(concatenate(maps[1:])))))


class SegNeXt(nn.Module):
    """SegNeXt-L.

    Args:
        num_classes: classes of the logits.
    """

    #: Nodes of the exported graph, by patterns of their names, that a conversion to half precision must leave alone:
    #: the factorisation sums over all pixels, and the LayerNorms square.
    float32_nodes = (r"decode_head\.hamburger\.ham/", r"backbone\.norm\d/")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = MSCAN()
        self.decode_head = HamHead(num_classes)

    def forward_logits(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,h,w] at stride 8 (rounded up)."""
        return self.decode_head(self.backbone(image))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,H,W]."""
        return resize(self.forward_logits(image), spatial(image))
