"""Building blocks shared by the dense bases. Module names inside follow the official checkpoints.

Whatever depends on the image size alone (pooling bins, sampling grids) is computed once per size outside of any
trace and enters an exported graph as a constant.
"""

from __future__ import annotations

from functools import lru_cache
from typing import List, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, bias: bool = False) -> nn.Sequential:
    """Convolution with same padding, BatchNorm, ReLU: children 0, 1, 2."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def resize(x: Tensor, size: Tuple[int, int]) -> Tensor:
    """Bilinear resize of [N,C,h,w] with aligned corners, the only resize of the SFNet family."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def spatial(x: Tensor) -> Tuple[int, int]:
    """Height and width as plain integers, also inside a trace."""
    return int(x.shape[2]), int(x.shape[3])


@lru_cache(maxsize=64)
def _pool_matrix(size: int, bins: int, device: torch.device) -> Tensor:
    matrix = np.zeros((bins, size), np.float32)
    for i in range(bins):
        first, last = (i * size) // bins, -((-(i + 1) * size) // bins)
        matrix[i, first:last] = 1.0 / (last - first)
    with torch.inference_mode(False):
        return torch.from_numpy(matrix).to(device)


@lru_cache(maxsize=32)
def _base_grid(height: int, width: int, source: Tuple[int, int], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        x = torch.linspace(-1.0, 1.0, width).expand(height, width)
        y = torch.linspace(-1.0, 1.0, height)[:, None].expand(height, width)
        return (torch.stack((x, y), dim=2)[None] * _inner(source)).contiguous().to(device)


@lru_cache(maxsize=32)
def _flow_unit(height: int, width: int, source: Tuple[int, int], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return (torch.tensor([1.0 / width, 1.0 / height], dtype=torch.float32) * _inner(source)).to(device)


def _inner(source: Tuple[int, int]) -> Tensor:
    # Corner centres of a map in coordinates whose -1 and 1 are its outer edges.
    height, width = source
    return torch.tensor([(width - 1) / width, (height - 1) / height], dtype=torch.float32)


def adaptive_average_pool(x: Tensor, bins: Tuple[int, int]) -> Tensor:
    """Adaptive average pooling of [N,C,h,w] to ``bins`` as two products with constant matrices.

    Equal to ``F.adaptive_avg_pool2d``, which cannot be exported when the bins do not divide the map.
    """
    if bins == (1, 1):
        return F.adaptive_avg_pool2d(x, 1)
    height, width = spatial(x)
    rows = _pool_matrix(height, bins[0], x.device).to(x.dtype)
    columns = _pool_matrix(width, bins[1], x.device).to(x.dtype)
    return torch.matmul(torch.matmul(rows, x), columns.t())


def flow_warp(x: Tensor, flow: Tensor) -> Tensor:
    """Sample ``x`` [N,C,h,w] bilinearly where ``flow`` [N,2,H,W] (x, y) points; zeros outside; result [N,C,H,W].

    Coordinates are aligned to corners, and one unit of flow is 1/W (1/H) of the range -1..1: about half a pixel of
    the target. Coordinates, and with them the sampling, are float32 whatever the precision of the features: half
    precision loses up to 3 % of the logits' deviation.

    The same points are given to the sampler in coordinates that are not aligned to corners, a factor in two constants:
    ONNX Runtime's GridSample has its fast kernel, five times faster, for those alone (measured with 1.31 on a CPU).
    """
    (height, width), source = spatial(flow), spatial(x)
    offset = flow.permute(0, 2, 3, 1).float() * _flow_unit(height, width, source, x.device)
    grid = _base_grid(height, width, source, x.device) + offset
    sampled = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.to(x.dtype)


class AdaptivePool(nn.Module):
    """Adaptive average pooling to a square of bins, exportable at any size."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,h,w] -> [N,C,bins,bins]."""
        return adaptive_average_pool(x, (self.bins, self.bins))


class PyramidPooling(nn.Module):
    """PPM: pooled context of several sizes, concatenated before the input. Its branches have no ReLU."""

    def __init__(self, inputs: int, width: int, outputs: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(AdaptivePool(n), nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)) for n in bins
        )
        self.bottleneck = conv_bn_relu(inputs + len(bins) * width, outputs)
        self.bottleneck.append(nn.Dropout2d(0.1))

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,outputs,h,w]."""
        size = spatial(x)
        return self.bottleneck(torch.cat([resize(stage(x), size) for stage in self.stages] + [x], dim=1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the second one is dilated."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _projection(inputs, planes, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,planes,h/stride,w/stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, strided and dilated 3x3, 1x1 to four times the planes."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = _projection(inputs, planes * 4, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,4*planes,h/stride,w/stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def deep_stem_resnet(
    depth: int, strides: Sequence[int] = (1, 2, 2, 2), dilations: Sequence[int] = (1, 1, 2, 4)
) -> Tuple[List[nn.Sequential], List[int]]:
    """ResNet whose first convolution is three 3x3 ones.

    Args:
        depth: 18, 50 or 101.
        strides: of the four layers.
        dilations: of every ``conv2`` of the four layers (SFNet keeps stride 32 and dilates nevertheless).

    Returns:
        ([layer0, ..., layer4], channels of layer1..layer4).
    """
    block, counts = _DEPTHS[depth]
    stem = nn.Sequential(
        *conv_bn_relu(3, 64, 3, 2), *conv_bn_relu(64, 64, 3), nn.Conv2d(64, 128, 3, padding=1, bias=False)
    )
    layers = [nn.Sequential(stem, nn.BatchNorm2d(128), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))]
    channels, inputs = [], 128
    for index, (count, stride, dilation) in enumerate(zip(counts, strides, dilations)):
        planes = 64 << index
        outputs = planes * block.expansion
        blocks = []
        for i in range(count):
            first = i == 0
            project = first and (stride != 1 or inputs != outputs)
            blocks.append(block(inputs, planes, stride if first else 1, dilation, project))
            inputs = outputs
        layers.append(nn.Sequential(*blocks))
        channels.append(outputs)
    return layers, channels
