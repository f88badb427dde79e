"""SANet and SANet-Tiny: a ResNet-18 with pooled context and gated fusion of scales.

Spatial-Assistant Encoder-Decoder Network for Real Time Semantic Segmentation (arXiv 2309.10519). Names and shapes of
the weights are those of the official code (github.com/kaigelee/SANet) after the repairs without which it does not
run: the deep-stem ResNet, and a fusion whose first input has the 128 channels that the context module gives.
"""

from __future__ import annotations

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.blocks import adaptive_average_pool, conv_bn_relu, deep_stem_resnet, resize, spatial

_WIDTH = 128
_SHUFFLE = 8


class ConvBNReLU(nn.Module):
    """Convolution with same padding, BatchNorm, ReLU, by the names conv, bn, relu."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,outputs,h,w]."""
        return self.relu(self.bn(self.conv(x)))


def context_grids(height: int, width: int) -> List[Tuple[int, int]]:
    """Bins (rows, columns) of the four context pools on a map of ``height`` x ``width``.

    Columns follow the map's aspect, rounded half to even: the official code uses Python's ``round``.
    """
    return [(rows, max(1, round(rows * (width / height)))) for rows in (6, 3, 2, 1)]


class StripContext(nn.Module):
    """The four pooled contexts, each with its own convolution, at the size of the input again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for index in range(1, 5):
            self.add_module(f"spp_{index}", ConvBNReLU(channels, channels, 1))

    def forward(self, x: Tensor) -> List[Tensor]:
        """[N,channels,h,w] -> four times the same shape, most bins first."""
        size = spatial(x)
        contexts = []
        for index, bins in enumerate(context_grids(*size), 1):
            pooled = getattr(self, f"spp_{index}")(adaptive_average_pool(x, bins))
            contexts.append(F.interpolate(pooled, size=size, mode="nearest"))
        return contexts


class SpatialContext(nn.Module):
    """SCE: adds to a map its contexts, weighted at every pixel by 1 + a learned attention."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.reduce_channel = ConvBNReLU(inputs, width, 1)
        self.spp = StripContext(width)
        self.spatial_attention = nn.Sequential(
            ConvBNReLU(4 * width, width, 1), nn.Conv2d(width, 4, 1, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> [N,width,h,w]."""
        x = self.reduce_channel(x)
        contexts = self.spp(x)
        attention = self.spatial_attention(torch.cat(contexts, dim=1)) + 1
        for index, context in enumerate(contexts):
            x = x + context * attention[:, index : index + 1]
        return x


class PixelMean(nn.Module):
    """Mean over all pixels as a reduction: converters to half precision keep those in float32, pools they do not."""

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,h,w] -> [N,C,1,1]."""
        return x.mean((2, 3), keepdim=True)


class GeM(nn.Module):
    """Cubic mean over all pixels. Cubes leave the range of half precision above 40 and below 0.004: float32 always."""

    def __init__(self) -> None:
        super().__init__()
        self.avg_pool = PixelMean()

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,h,w] without negative values -> float32 [N,C,1,1]."""
        return (self.avg_pool(x.float().pow(3)) + 1e-12) ** (1 / 3)


class GatedFusion(nn.Module):
    """SFF: sum of a coarse and a fine map, each channel gated by the cubic means of both."""

    def __init__(self, low: int, high: int, width: int) -> None:
        super().__init__()
        self.conv_low = conv_bn_relu(low, width, 3)
        self.conv_high = conv_bn_relu(high, width, 3)
        self.avg_pool = GeM()
        self.conv_1 = nn.Conv1d(1, 1, 5, padding=2, bias=False)
        self.conv_2 = nn.Conv1d(1, 1, 5, padding=2, bias=False)
        self.width = width

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Coarse [N,low,h,w] and fine [N,high,H,W] -> [N,width,H,W]."""
        low, high = self.conv_low(low), self.conv_high(high)
        low = resize(low, spatial(high))
        # Channels of both alternate in one sequence, over which the gates look at their neighbours.
        means = torch.cat((self.avg_pool(low), self.avg_pool(high)), dim=3)
        sequence = means.reshape(-1, 1, 2 * self.width).to(low.dtype)
        gates = torch.sigmoid(self.conv_2(self.conv_1(sequence))).reshape(-1, self.width, 1, 2)
        return low * gates[..., :1] + high * gates[..., 1:]


class Head(nn.Module):
    """Classifier at stride 8; SANet's predicts the 8x8 pixels of every site and shuffles them into place."""

    def __init__(self, width: int, classes: int, tiny: bool) -> None:
        super().__init__()
        self.conv = ConvBNReLU(width, width, 3)
        self.conv_out = nn.Conv2d(width, classes if tiny else classes * _SHUFFLE**2, 1)
        self.up = None if tiny else nn.PixelShuffle(_SHUFFLE)

    def forward(self, x: Tensor) -> Tensor:
        """[N,width,h,w] -> logits [N,classes,h,w] (tiny) or [N,classes,8h,8w]."""
        x = self.conv_out(self.conv(x))
        return x if self.up is None else self.up(x)


class Backbone(nn.Module):
    """ResNet-18 with a deep stem, not dilated, by the official names."""

    def __init__(self) -> None:
        super().__init__()
        layers, _ = deep_stem_resnet(18, dilations=(1, 1, 1, 1))
        self.conv1, self.bn1, self.relu, self.maxpool = layers[0]
        self.layer1, self.layer2, self.layer3, self.layer4 = layers[1:]

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """[N,3,H,W] -> maps of 128, 256 and 512 channels at strides 8, 16 and 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        fine = self.layer2(self.layer1(x))
        middle = self.layer3(fine)
        return fine, middle, self.layer4(middle)


class SANet(nn.Module):
    """SANet or SANet-Tiny. SANet-50, -75 and -100 are one network at inputs of 512, 768 and 1024 rows.

    Args:
        num_classes: classes of the logits.
        tiny: SANet-Tiny, whose logits are interpolated instead of shuffled.
    """

    def __init__(self, num_classes: int, tiny: bool = False) -> None:
        super().__init__()
        self.resnet = Backbone()
        self.sce = SpatialContext(512, _WIDTH)
        self.sff1 = GatedFusion(_WIDTH, 256, _WIDTH)
        self.sff2 = GatedFusion(_WIDTH, 128, _WIDTH)
        self.conv_out32 = Head(_WIDTH, num_classes, tiny)

    def forward_logits(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,H,W], or at stride 8 (rounded up) of SANet-Tiny."""
        fine, middle, deep = self.resnet(image)
        logits = self.conv_out32(self.sff2(self.sff1(self.sce(deep), middle), fine))
        if self.conv_out32.up is None:
            return logits
        # Sides that 8 does not divide, which the official network refuses, end inside the last block of pixels.
        height, width = spatial(image)
        return logits if spatial(logits) == (height, width) else logits[:, :, :height, :width]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,H,W]."""
        logits = self.forward_logits(image)
        return resize(logits, spatial(image)) if self.conv_out32.up is None else logits
