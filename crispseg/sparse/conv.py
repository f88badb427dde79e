"""Sparse convolution as gather and matrix product, with autograd.

The gathered matrix [M, K * Cin] is never built whole: rows are taken in blocks that stay in the cache. Maps with few
hits (the way up has at most 2.25 of 9 on average) go tap by tap, so that the cost follows the real work.
``index_select`` is used throughout: on rows it is 3 to 4 times as fast as indexing.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from crispseg.sparse.maps import transpose_map

_BLOCK_VALUES = 1 << 18  # gathered values per block: 1 MiB of float32
_SPARSE_BELOW = 0.3  # share of hits in a map below which going tap by tap is faster


def _is_sparse(kernel_map: Tensor) -> bool:
    return int((kernel_map >= 0).sum()) < _SPARSE_BELOW * kernel_map.numel()


def _hits(column: Tensor) -> tuple[Tensor, Tensor]:
    rows = (column >= 0).nonzero().squeeze(1)
    return rows, column.index_select(0, rows)


def _blocks(x: Tensor, kernel_map: Tensor) -> Any:
    """Yield (first, last, gathered [last - first, K * Cin]); row Nin of the padded input is the zero of absent taps."""
    taps, channels = kernel_map.shape[1], x.shape[1]
    padded = torch.cat([x, x.new_zeros((1, channels))])
    source = torch.where(kernel_map < 0, x.shape[0], kernel_map)
    step = max(64, _BLOCK_VALUES // max(1, taps * channels))
    for first in range(0, kernel_map.shape[0], step):
        block = source[first : first + step]
        yield first, first + block.shape[0], padded.index_select(0, block.reshape(-1)).view(-1, taps * channels)


def _product(x: Tensor, kernel_map: Tensor, weight: Tensor) -> Tensor:
    """[Nin, Cin], [M, K], [K, Cin, Cout] -> [M, Cout]."""
    out = x.new_zeros((kernel_map.shape[0], weight.shape[2]))
    if _is_sparse(kernel_map):
        for tap in range(kernel_map.shape[1]):
            rows, source = _hits(kernel_map[:, tap])
            if rows.shape[0]:
                out.index_add_(0, rows, x.index_select(0, source) @ weight[tap])
        return out
    flat = weight.reshape(-1, weight.shape[2])
    for first, last, gathered in _blocks(x, kernel_map):
        torch.mm(gathered, flat, out=out[first:last])
    return out


def _weight_gradient(x: Tensor, kernel_map: Tensor, grad: Tensor) -> Tensor:
    """[Nin, Cin], [M, K], [M, Cout] -> [K, Cin, Cout]."""
    taps, channels = kernel_map.shape[1], x.shape[1]
    out = x.new_zeros((taps * channels, grad.shape[1]))
    if _is_sparse(kernel_map):
        for tap in range(taps):
            rows, source = _hits(kernel_map[:, tap])
            if rows.shape[0]:
                out[tap * channels : (tap + 1) * channels] = x.index_select(0, source).t() @ grad.index_select(0, rows)
    else:
        for first, last, gathered in _blocks(x, kernel_map):
            out.addmm_(gathered.t(), grad[first:last])
    return out.view(taps, channels, -1)


class _SparseConv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel_map: Tensor, transposed: Optional[Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight, kernel_map, transposed)
        return _product(x, kernel_map, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:  # type: ignore[override]
        x, weight, kernel_map, transposed = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            if transposed is None:
                transposed = transpose_map(kernel_map, x.shape[0])
            grad_x = _product(grad, transposed, weight.transpose(1, 2))
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, kernel_map, grad)
        return grad_x, grad_weight, None, None


def sparse_conv2d(x: Tensor, kernel_map: Tensor, weight: Tensor, transposed: Optional[Tensor] = None) -> Tensor:
    """Sparse convolution: out[m] = sum over k of x[map[m, k]] @ weight[k], where -1 reads zeros. Differentiable.

    Args:
        x: float [Nin, Cin], rows of the input sites.
        kernel_map: long [M, K], input row of every output row and tap, or -1.
        weight: float [K, Cin, Cout], tap k = ky + 3 * kx.
        transposed: long [Nin, K], map of the other direction; saves finding it in the backward pass.

    Returns:
        float [M, Cout].

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if x.dim() != 2 or weight.dim() != 3 or kernel_map.dim() != 2 or kernel_map.dtype != torch.int64:
        raise ValueError(
            f"sparse_conv2d: expected x [N,Cin], long map [M,K], weight [K,Cin,Cout], found {list(x.shape)}, "
            f"{kernel_map.dtype} {list(kernel_map.shape)}, {list(weight.shape)}"
        )
    if x.shape[1] != weight.shape[1] or kernel_map.shape[1] != weight.shape[0]:
        raise ValueError(
            f"sparse_conv2d: {x.shape[1]} channels and {kernel_map.shape[1]} taps do not fit {list(weight.shape)}"
        )
    if transposed is not None and tuple(transposed.shape) != (x.shape[0], kernel_map.shape[1]):
        raise ValueError(f"sparse_conv2d: transposed map of shape {list(transposed.shape)} for {x.shape[0]} input rows")
    return _SparseConv.apply(x, weight, kernel_map, transposed)


def quantised_conv2d(x: Tensor, kernel_map: Tensor, weight: Tensor, w_scale: Tensor, x_scale: float) -> Tensor:
    """The int8 convolution of the op contract: integers summed exactly, then scaled once. No autograd.

    Args:
        x: float32 [Nin, Cin].
        kernel_map: long [M, K], -1 = no neighbour.
        weight: int8 [K, Cin, Cout], -127..127.
        w_scale: float32 [Cout], value of one step of each column's weights.
        x_scale: value of one step of x, > 0.

    Returns:
        float32 [M, Cout]: sum_k q(x)[map[:, k]] @ weight[k] * (x_scale * w_scale), q = clamp(round(x / x_scale)).

    Raises:
        ValueError: shapes or dtypes do not fit, or x_scale is not above 0.
    """
    if not x_scale > 0 or weight.dtype != torch.int8 or w_scale.shape != weight.shape[2:]:
        raise ValueError(
            f"quantised_conv2d: expected x_scale > 0, int8 weight [K,Cin,Cout], w_scale [Cout], found {x_scale}, "
            f"{weight.dtype} {list(weight.shape)}, {list(w_scale.shape)}"
        )
    step = torch.tensor(x_scale, dtype=torch.float32)
    q = torch.clamp(torch.round(x.float() / step), -127, 127)
    # Float64 holds every partial sum exactly: |sum| <= 127 * 127 * 32 * 65536 < 2^53.
    total = sparse_conv2d(q.double(), kernel_map, weight.double())
    return total.float() * (step * w_scale.float())


def flipped(same: Tensor) -> Tensor:
    """Transpose of a submanifold map: long [N, 9] -> long [N, 9]. Tap k one way is tap 8 - k the other way."""
    return same.flip(1)
