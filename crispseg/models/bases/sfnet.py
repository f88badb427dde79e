"""SFNet and SFNet-Lite: segmenters that align a deep map to a finer one by a learned flow.

Semantic Flow for Fast and Accurate Scene Parsing (ECCV 2020) and SFNet: Faster and Accurate Semantic Segmentation
via Semantic Flow (IJCV 2023, arXiv 2207.04415). Names and shapes of the weights are those of the official
checkpoints (github.com/lxtGH/SFSegNets); every bilinear resize aligns corners.
"""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple, Type, Union

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
from crispseg.models.bases.dfnet import DFNet
from crispseg.models.bases.stdc import STDC

_RESNETS = {"r18": 18, "r50": 50, "r101": 101}
_OTHERS: Dict[str, Tuple[Union[Type[DFNet], Type[STDC]], int]] = {
    "dfv1": (DFNet, 1),
    "dfv2": (DFNet, 2),
    "stdc1": (STDC, 1),
    "stdc2": (STDC, 2),
}
#: Width of the head's maps; SFNet-Lite has 128 on every backbone.
_WIDTHS = {"r18": 128, "r50": 256, "r101": 256, "dfv1": 64, "dfv2": 64, "stdc1": 64, "stdc2": 64}
_LITE_WIDTH = 128


class FlowAlign(nn.Module):
    """FAM: warps a coarse map onto a fine one; the flow's resolution makes the warp its upsampling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.down_h = nn.Conv2d(channels, half, 1, bias=False)
        self.down_l = nn.Conv2d(channels, half, 1, bias=False)
        self.flow_make = nn.Conv2d(2 * half, 2, 3, padding=1, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Maps [N,channels,H,W] and [N,channels,h,w] -> the coarse one at [N,channels,H,W]."""
        low = self.down_l(fine)
        high = resize(self.down_h(coarse), spatial(fine))
        return flow_warp(coarse, self.flow_make(torch.cat((high, low), dim=1)))


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


class AlignHead(nn.Module):
    """Feature pyramid whose every top-down step is a flow alignment; the levels meet at the finest."""

    def __init__(self, channels: Sequence[int], classes: int, width: int) -> None:
        super().__init__()
        self.ppm = PyramidPooling(channels[-1], width, width)
        self.fpn_in = nn.ModuleList(conv_bn_relu(n, width, bias=True) for n in channels[:-1])
        self.fpn_out = nn.ModuleList(nn.Sequential(conv_bn_relu(width, width, 3)) for _ in channels[:-1])
        self.fpn_out_align = nn.ModuleList(FlowAlign(width) for _ in channels[:-1])
        self.conv_last = nn.Sequential(conv_bn_relu(len(channels) * width, width, 3), nn.Conv2d(width, classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, finest first -> logits [N,classes,h,w] at the finest map's size."""
        top = self.ppm(maps[-1])
        levels = [top]
        for index in range(len(maps) - 2, -1, -1):
            lateral = self.fpn_in[index](maps[index])
            top = lateral + self.fpn_out_align[index](lateral, top)
            levels.append(self.fpn_out[index](top))
        levels.reverse()
        size = spatial(levels[0])
        return self.conv_last(torch.cat(levels[:1] + [resize(level, size) for level in levels[1:]], dim=1))


class LiteHead(nn.Module):
    """Context at stride 32 aligned straight to stride 4, joined by the stride 16 lateral."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = _LITE_WIDTH) -> None:
        super().__init__()
        fine, _, middle, deep = channels
        self.ppm = PyramidPooling(deep, width, width)
        self.fpn_in = nn.ModuleList((conv_bn_relu(fine, width, bias=True), conv_bn_relu(middle, width, bias=True)))
        self.flow_align_module = GatedDualFlow(width)
        self.conv_last = nn.Sequential(conv_bn_relu(2 * width, width, 3), nn.Conv2d(width, classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 4, 8 (not used), 16 and 32 -> logits [N,classes,H/4,W/4]."""
        fine, _, middle, deep = maps
        aligned = self.flow_align_module(self.fpn_in[0](fine), self.ppm(deep))
        return self.conv_last(torch.cat((aligned, resize(self.fpn_in[1](middle), spatial(aligned))), dim=1))


class SFNet(nn.Module):
    """SFNet or SFNet-Lite.

    Args:
        num_classes: classes of the logits.
        backbone: r18, r50 or r101 (ResNet with a deep stem), dfv1, dfv2, stdc1 or stdc2.
        lite: the head of SFNet-Lite, for backbones with maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, num_classes: int, backbone: str = "r18", lite: bool = False) -> None:
        super().__init__()
        channels: Tuple[int, ...]
        if backbone in _RESNETS:  # its layers lie beside the head, the others' in "backbone"
            layers, found = deep_stem_resnet(_RESNETS[backbone])
            self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = layers
            channels = tuple(found)
        else:
            kind, version = _OTHERS[backbone]
            self.backbone = kind(version)
            channels = kind.channels
        self.head = LiteHead(channels, num_classes) if lite else AlignHead(channels, num_classes, _WIDTHS[backbone])

    def features(self, image: Tensor) -> Sequence[Tensor]:
        """Normalised image [N,3,H,W] -> maps, finest first; the strides are the backbone's."""
        if hasattr(self, "backbone"):
            return self.backbone(image)
        maps: List[Tensor] = [self.layer1(self.layer0(image))]
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def forward_logits(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,h,w] at the stride of the finest map (rounded up)."""
        return self.head(self.features(image))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,H,W]."""
        return resize(self.forward_logits(image), spatial(image))
