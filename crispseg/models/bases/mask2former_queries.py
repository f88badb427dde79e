"""Mask2Former's transformer decoder: a hundred queries look at the image where their own masks are.

Masked-attention Mask Transformer for Universal Image Segmentation (CVPR 2022, arXiv 2112.01527), section 3.2. Names and
shapes of the weights are those of MMSegmentation 1.x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.mmseg import FFN, LayerNorm, to_tokens

WIDTH, HEADS = 256, 8
LAYERS = 9
# Added to the score of a blocked pixel. The softmax gives 0, as for minus infinity, and half precision can hold it.
BLOCKED = -1e4


class Attention(nn.Module):
    """Attention whose query, key and value projections lie in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries [N,Q,256], keys and values [N,K,256], ``bias`` [N,1,Q,K] of the scores -> [N,Q,256]."""
        batch, count = int(query.shape[0]), int(query.shape[1])
        q = self._project(query, 0, (WIDTH // HEADS) ** -0.5).transpose(1, 2)
        k, v = self._project(key, 1).permute(0, 2, 3, 1), self._project(value, 2).transpose(1, 2)
        scores = q @ k
        if bias is not None:
            scores = scores + bias
        mixed = torch.softmax(scores, dim=-1) @ v
        return self.out_proj(mixed.transpose(1, 2).reshape(batch * count, WIDTH)).reshape(batch, count, WIDTH)

    def _project(self, x: Tensor, third: int, scale: float = 1.0) -> Tensor:
        # The scale goes to the weights: an export folds it.
        rows = slice(third * WIDTH, (third + 1) * WIDTH)
        weight, bias = self.in_proj_weight[rows], self.in_proj_bias[rows]
        tokens = x.reshape(-1, WIDTH)
        y = F.linear(tokens, weight, bias) if scale == 1 else F.linear(tokens, weight * scale, bias * scale)
        return y.reshape(int(x.shape[0]), int(x.shape[1]), HEADS, WIDTH // HEADS)


class DecoderLayer(nn.Module):
    """Attention to a map, attention among the queries, FFN; each is added and then normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"attn": Attention()})
        self.cross_attn = nn.ModuleDict({"attn": Attention()})
        self.ffn = FFN(WIDTH, 8 * WIDTH, nn.ReLU())
        self.norms = nn.ModuleList(LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Queries [N,Q,256] with ``position`` [Q,256]; a map's keys and values [N,h*w,256] -> queries."""
        x = self.norms[0](x + self.cross_attn["attn"](x + position, key, value, bias))
        placed = x + position
        x = self.norms[1](x + self.self_attn["attn"](placed, placed, x))
        return self.norms[2](x + self.ffn(x))


def attention_bias(masks: Tensor) -> Tensor:
    """Bias [N,1,Q,h*w] of attention from masks [N,Q,h*w] of the attended map's size.

    Pixels whose mask is below 0 (probability below one half) are blocked; a query whose pixels all are sees all.
    """
    limit = torch.where(masks.amax(-1, keepdim=True) < 0, float("-inf"), 0.0)
    return torch.where(masks < limit, BLOCKED, 0.0)[:, None]


class TransformerDecoder(nn.Module):
    """Nine layers that go round the maps at strides 32, 16 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.post_norm = LayerNorm(WIDTH)


def keys_and_values(maps: list[Tensor], level: Tensor, positions: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each map [N,256,h,w]: keys and values [N,h*w,256], of which the keys know their ``positions``."""
    values = [to_tokens(x) + level[i] for i, x in enumerate(maps)]
    return [(value + position, value) for value, position in zip(values, positions)]
