"""SFNet-Lite: a light segmenter that aligns its deepest and finest maps by a learned flow.

Semantic Flow for Fast and Accurate Scene Parsing (ECCV 2020) and SFNet: Faster and Accurate Semantic Segmentation
via Semantic Flow (IJCV 2023, arXiv 2207.04415). Names and shapes of the weights are those of the official
checkpoints (github.com/lxtGH/SFSegNets); every bilinear resize aligns corners.
"""

from __future__ import annotations

from typing import List, Sequence

import torch
from torch import Tensor, nn

from crispseg.models.bases.blocks import (
    PyramidPooling,
    conv_bn_relu,
    deep_stem_resnet,
    flow_warp,
    resize,
    spatial,
)


class GatedDualFlow(nn.Module):
    """Aligns a coarse map to a fine one: a flow for each of the two, and a gate that mixes them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.down_h = nn.Conv2d(channels, half, 1, bias=False)
        self.down_l = nn.Conv2d(channels, half, 1, bias=False)
        self.flow_make = nn.Conv2d(2 * half, 4, 3, padding=1, bias=False)
        self.flow_gate = nn.Sequential(nn.Conv2d(4, 1, 3, padding=1, bias=False), nn.Sigmoid())

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Maps [N,channels,H,W] and [N,channels,h,w] -> [N,channels,H,W]."""
        high = resize(self.down_h(coarse), spatial(fine))
        flow = self.flow_make(torch.cat((high, self.down_l(fine)), dim=1))
        # The gate sees the projected coarse map but the fine map as it came: so it was trained.
        seen = [m.mean(1, keepdim=True) for m in (high, fine)] + [m.amax(1, keepdim=True) for m in (high, fine)]
        gate = self.flow_gate(torch.cat(seen, dim=1))
        # The warp of the coarse map is also its upsampling: the flow has the fine map's size.
        return flow_warp(coarse, flow[:, :2]) * gate + flow_warp(fine, flow[:, 2:]) * (1 - gate)


class LiteHead(nn.Module):
    """Context at stride 32 aligned straight to stride 4, joined by the stride 16 lateral."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 128) -> None:
        super().__init__()
        fine, middle, deep = channels
        self.ppm = PyramidPooling(deep, width, width)
        self.fpn_in = nn.ModuleList((conv_bn_relu(fine, width, bias=True), conv_bn_relu(middle, width, bias=True)))
        self.flow_align_module = GatedDualFlow(width)
        self.conv_last = nn.Sequential(conv_bn_relu(2 * width, width, 3), nn.Conv2d(width, classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 4, 16 and 32 -> logits [N,classes,H/4,W/4]."""
        fine, middle, deep = maps
        aligned = self.flow_align_module(self.fpn_in[0](fine), self.ppm(deep))
        return self.conv_last(torch.cat((aligned, resize(self.fpn_in[1](middle), spatial(aligned))), dim=1))


class SFNetLite(nn.Module):
    """SFNet-Lite on a deep-stem ResNet.

    Args:
        num_classes: classes of the logits.
        depth: of the ResNet; the paper's is 18.
    """

    def __init__(self, num_classes: int, depth: int = 18) -> None:
        super().__init__()
        layers, channels = deep_stem_resnet(depth)
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.head = LiteHead((channels[0], channels[2], channels[3]), num_classes)

    def features(self, image: Tensor) -> List[Tensor]:
        """Normalised image [N,3,H,W] -> maps at strides 4, 8, 16, 32."""
        maps = [self.layer1(self.layer0(image))]
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def forward_logits(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,h,w] at stride 4 (rounded up)."""
        maps = self.features(image)
        return self.head((maps[0], maps[2], maps[3]))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,H,W]."""
        return resize(self.forward_logits(image), spatial(image))
