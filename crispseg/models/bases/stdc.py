"""STDC1 and STDC2, short-term dense concatenation backbones, with the official names of the weights."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Blocks of the stages of 256, 512 and 1024 channels.
_BLOCKS: Dict[int, Tuple[int, int, int]] = {1: (2, 2, 2), 2: (4, 5, 3)}


class ConvX(nn.Module):
    """Convolution with same padding, BatchNorm, ReLU, by the names conv, bn, relu."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,outputs,h/stride,w/stride]."""
        return F.relu(self.bn(self.conv(x)))


class CatBlock(nn.Module):
    """Four convolutions in a chain whose results are concatenated: C/2, C/4, C/8 and C/8 channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        widths = (half, half // 2, half // 4, half // 4)
        convs: List[nn.Module] = [ConvX(inputs, half, 1)]
        convs += [ConvX(a, b, 3) for a, b in zip(widths[:-1], widths[1:])]
        self.conv_list = nn.ModuleList(convs)
        self.avd_layer: Optional[nn.Sequential] = None
        if stride == 2:
            self.avd_layer = nn.Sequential(
                nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False), nn.BatchNorm2d(half)
            )
            # The zeros of the padding count: an exporter that drops this changes the border.
            self.skip = nn.AvgPool2d(3, 2, 1, count_include_pad=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,outputs,h/stride,w/stride]."""
        first = self.conv_list[0](x)
        y = first
        if self.avd_layer is not None:
            y, first = self.avd_layer(first), self.skip(first)
        parts = [first]
        for conv in list(self.conv_list)[1:]:
            y = conv(y)
            parts.append(y)
        return torch.cat(parts, dim=1)


class STDC(nn.Module):
    """STDC backbone without its classifier.

    Args:
        version: 1 or 2.
    """

    #: Channels of the maps at strides 4, 8, 16 and 32.
    channels = (64, 256, 512, 1024)

    def __init__(self, version: int) -> None:
        super().__init__()
        layers: List[nn.Module] = [ConvX(3, 32, 3, 2), ConvX(32, 64, 3, 2)]
        self.taps = [1]  # index of the layer that gives each map
        inputs = 64
        for outputs, count in zip(self.channels[1:], _BLOCKS[version]):
            layers += [CatBlock(outputs if i else inputs, outputs, 1 if i else 2) for i in range(count)]
            self.taps.append(len(layers) - 1)
            inputs = outputs
        self.features = nn.ModuleList(layers)

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """[N,3,H,W] -> maps of ``channels`` at strides 4, 8, 16 and 32."""
        x = image
        maps: List[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return tuple(maps)
