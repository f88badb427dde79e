"""SegFormer-B5: a pyramid of transformers without position encoding, and a head of 1x1 convolutions.

SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers (NeurIPS 2021, arXiv 2105.15203).
Names and shapes of the weights are those of MMSegmentation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.mmseg import ConvModule, LayerNorm, concatenate, resize, spatial, to_map, to_tokens

DIMS = (64, 128, 320, 512)
DEPTHS = (3, 6, 40, 3)
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # of the sides of the map that keys and values come from
WIDTH = 256  # of the head
EPS = 1e-6  # of every LayerNorm


class PackedAttention(nn.Module):
    """Attention whose query, key and value projections lie in one matrix."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Queries [N,P,dim], keys and values from [N,K,dim] -> [N,P,dim]."""
        dim = self.out_proj.in_features
        q = self._split(self._project(x, 0) * (dim // self.heads) ** -0.5)
        k, v = self._split(self._project(source, 1)), self._split(self._project(source, 2))
        mixed = torch.softmax(q @ k.transpose(2, 3), dim=-1) @ v
        return self.out_proj(mixed.transpose(1, 2).reshape(int(x.shape[0]), int(x.shape[1]), dim))

    def _project(self, x: Tensor, third: int) -> Tensor:
        # Slices, not torch.split: the export folds nodes of one output.
        dim = self.out_proj.in_features
        rows = slice(third * dim, (third + 1) * dim)
        return F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])

    def _split(self, x: Tensor) -> Tensor:
        n, count, dim = (int(i) for i in x.shape)
        return x.reshape(n, count, self.heads, dim // self.heads).transpose(1, 2)


class ReducedAttention(nn.Module):
    """Attention to a map that a strided convolution has made smaller (rounded down: border tokens drop out)."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.attn = PackedAttention(dim, heads)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens [N,h*w,dim] of a map of this size -> same."""
        source = self.norm(to_tokens(self.sr(to_map(x, size)))) if self.reduction > 1 else x
        return self.attn(x, source)


class MixFFN(nn.Module):
    """1x1, depthwise 3x3, GELU, 1x1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 4 * dim
        depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        first, last = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        # Dropout holds the place that gives the last convolution its number.
        self.layers = nn.Sequential(first, depthwise, nn.GELU(), nn.Identity(), last)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens [N,h*w,dim] of a map of this size -> same."""
        return to_tokens(self.layers(to_map(x, size)))


class Block(nn.Module):
    """Attention and FFN, each behind a LayerNorm and added."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=EPS)
        self.attn = ReducedAttention(dim, heads, reduction)
        self.norm2 = LayerNorm(dim, eps=EPS)
        self.ffn = MixFFN(dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens [N,h*w,dim] of a map of this size -> same."""
        x = x + self.attn(self.norm1(x), size)
        return x + self.ffn(self.norm2(x), size)


class PatchEmbed(nn.Module):
    """Strided convolution with overlap, then LayerNorm."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, dim, kernel, stride, kernel // 2)
        self.norm = LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[N,inputs,h,w] -> tokens, and the size of their map."""
        x = self.projection(x)
        return self.norm(to_tokens(x)), spatial(x)


class MixTransformer(nn.Module):
    """Four stages at strides 4 to 32; each one's normalised map feeds the next."""

    def __init__(self) -> None:
        super().__init__()
        inputs, stages = 3, []
        for i, (dim, depth, heads, reduction) in enumerate(zip(DIMS, DEPTHS, HEADS, REDUCTIONS)):
            embed = PatchEmbed(inputs, dim, *((3, 2) if i else (7, 4)))
            blocks = nn.ModuleList(Block(dim, heads, reduction) for _ in range(depth))
            stages.append(nn.ModuleList([embed, blocks, LayerNorm(dim, eps=EPS)]))
            inputs = dim
        self.layers = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N,3,H,W] -> maps of 64, 128, 320, 512 channels at strides 4, 8, 16, 32 (rounded up)."""
        maps = []
        for stage in self.layers:
            embed, blocks, norm = stage  # type: ignore[misc, has-type]  # a ModuleList of three
            tokens, size = embed(x)  # type: ignore[has-type]
            for block in blocks:  # type: ignore[has-type]
                tokens = block(tokens, size)
            x = to_map(norm(tokens), size)  # type: ignore[has-type]
            maps.append(x)
        return maps


class SegFormerHead(nn.Module):
    """A 1x1 convolution for each map, joined at stride 4, another one, classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(WIDTH, classes, 1)
        self.convs = nn.ModuleList(ConvModule(dim, WIDTH) for dim in DIMS)
        self.fusion_conv = ConvModule(len(DIMS) * WIDTH, WIDTH)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps -> logits [N,classes,h,w] at stride 4."""
        return self.conv_seg(self.fusion_conv(concatenate([conv(x) for conv, x in zip(self.convs, maps)])))


class SegFormer(nn.Module):
    """SegFormer-B5.

    Args:
        num_classes: classes of the logits.
    """

    #: Nodes of the exported graph, by patterns of their names, that a conversion to half precision must leave alone:
    #: the LayerNorms square.
    float32_nodes = (r"backbone\.layers.*\bnorm[12]?/", r"backbone\.layers\.\d\.2/")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = MixTransformer()
        self.decode_head = SegFormerHead(num_classes)

    def forward_logits(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,h,w] at stride 4 (rounded up)."""
        return self.decode_head(self.backbone(image))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,H,W]."""
        return resize(self.forward_logits(image), spatial(image))
