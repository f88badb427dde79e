"""CRM, Continuous Refinement Model (Shen et al., High Quality Segmentation for Ultra High-resolution Images, 2022).

A ResNet-50 on the picture and its coarse mask gives a feature map at half resolution; an implicit function (a small
MLP on a feature and relative coordinates) is asked for the mask at any point. The state dict has the keys of the
official checkpoints, without the fourth stage of the backbone, whose result nobody uses.

``encode`` and ``query`` follow the published form and are the reference. ``branches`` and ``project`` are the places
where an exported graph is cut: the first layer of the MLP is linear, so that its feature part is one 1x1 convolution
256 -> 32 of the feature map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.blocks import Bottleneck, resize, spatial
from crispseg.models.checkpoints import load_checkpoint, load_strict

#: Keys of official files that no result depends on: the backbone's last stage and its classifier.
UNUSED = (r"feats\.layer4\.", r"feats\.fc\.")
SCALES = (0.125, 0.25, 0.5, 1.0)
PAD = 32
MEAN = (0.485, 0.456, 0.406)  # of RGB / 255
STD = (0.229, 0.224, 0.225)
FEATURES = 256
HIDDEN = 32
AREA_EPSILON = 1e-9
SHIFT_EPSILON = 1e-6
#: (y, x) steps of the four queries around a point, in half cells; the opposite one of k is 3 - k.
SHIFTS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


class Backbone(nn.Module):
    """ResNet-50 up to stage 3 on [RGB, mask]; stage 3 keeps stride 8 and is dilated from its second block on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, 3)
        self.layer2 = stage(256, 128, 4, stride=2)
        self.layer3 = stage(512, 256, 6, dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N,4,H,W] -> 64 channels at 1/2, 256 at 1/4, 1024 at 1/8; every size rounded up."""
        first = F.relu(self.bn1(self.conv1(x)))
        second = self.layer1(F.max_pool2d(first, 3, 2, 1))
        return first, second, self.layer3(self.layer2(second))


def stage(inputs: int, planes: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Bottlenecks of one stage. Torchvision's rule: the first block takes the dilation before this stage, here 1."""
    first = Bottleneck(inputs, planes, stride, max(1, dilation // 2), True)
    return nn.Sequential(first, *(Bottleneck(planes * 4, planes, 1, dilation, False) for _ in range(blocks - 1)))


class _Projection(nn.Module):
    """1x1 convolution, BatchNorm, ReLU; the key says "atrous", the weights do not."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.atrous_conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class Fusion(nn.Module):
    """Joins the three maps at half resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp1_128, self.bn1_128 = _Projection(64, 64), nn.BatchNorm2d(64)
        self.aspp1_256, self.bn1_256 = _Projection(256, 64), nn.BatchNorm2d(64)
        self.aspp1_1024, self.bn1_1024 = _Projection(1024, 128), nn.BatchNorm2d(128)
        self.last_conv = nn.Sequential(
            nn.Conv2d(256, FEATURES, 3, padding=1, bias=False), nn.BatchNorm2d(FEATURES), nn.ReLU()
        )

    def branches(self, first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of 64, 256 and 1024 channels -> 64, 64 and 128 channels, each [N,C,h,w] at the size of its input."""
        return (
            F.relu(self.bn1_128(self.aspp1_128(first))),
            F.relu(self.bn1_256(self.aspp1_256(second))),
            F.relu(self.bn1_1024(self.aspp1_1024(third))),
        )

    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        """Branches -> feature map [N,256,h,w] at the size of the first one."""
        size = spatial(first)
        return self.last_conv(torch.cat([first, resize(second, size), resize(third, size)], dim=1))


class Implicit(nn.Module):
    """MLP 262-32-32-32-32-1 with ReLU; layers 0, 2, 4, 6, 8 are linear."""

    def __init__(self) -> None:
        super().__init__()
        widths = (FEATURES + 6, HIDDEN, HIDDEN, HIDDEN, HIDDEN)
        pairs = ((nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.layers = nn.Sequential(*(layer for pair in pairs for layer in pair), nn.Linear(HIDDEN, 1))

    @property
    def linear(self) -> list[nn.Linear]:
        """Its five linear layers."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        """[..., 262] -> [..., 1]."""
        return self.layers(x)


class CRM(nn.Module):
    """The refiner; see the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.feats = Backbone()
        self.aspp_ = Fusion()
        self.imnet = Implicit()

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Picture and mask [N,4,H,W] -> 64 channels at 1/2, 64 at 1/4, 128 at 1/8."""
        return self.aspp_.branches(*self.feats(x))

    def encode(self, x: Tensor) -> Tensor:
        """Normalised RGB and mask in -1..1, [N,4,H,W] -> features [N,256,ceil(H/2),ceil(W/2)]."""
        return self.aspp_(*self.branches(x))

    def project(self, features: Tensor) -> Tensor:
        """The feature part of the MLP's first layer with its bias: [N,256,h,w] -> [N,32,h,w]."""
        layer = self.imnet.linear[0]
        return F.conv2d(features, layer.weight[:, :FEATURES, None, None], layer.bias)

    def query(self, features: Tensor, points: Tensor, cells: Tensor) -> Tensor:
        """Logits at points, as published: four shifted reads, blended by the opposite areas.

        Args:
            features: [1,256,h,w] from ``encode``.
            points: float32 [Q,2], (y, x) in -1..1.
            cells: float32 [Q,2] or [2], extent (y, x) of a point; 2 / size of the query grid.

        Returns:
            float32 [Q].
        """
        height, width = spatial(features)
        sizes = torch.tensor([height, width], dtype=torch.float32)
        centres = torch.stack(torch.meshgrid(cell_centres(height), cell_centres(width), indexing="ij"))[None]
        scaled = (cells * sizes).expand_as(points)
        logits, areas = [], []
        for sy, sx in SHIFTS:
            step = torch.tensor([sy / height + SHIFT_EPSILON, sx / width + SHIFT_EPSILON])
            shifted = (points + step).clamp(-1 + SHIFT_EPSILON, 1 - SHIFT_EPSILON)
            grid = shifted.flip(-1)[None, None]
            feature = F.grid_sample(features, grid, mode="nearest", align_corners=False)[0, :, 0].t()
            centre = F.grid_sample(centres, grid, mode="nearest", align_corners=False)[0, :, 0].t()
            relative = (points - centre) * sizes
            logits.append(self.imnet(torch.cat([feature, relative, points, scaled], dim=1))[:, 0])
            areas.append(relative.prod(dim=1).abs() + AREA_EPSILON)
        total = torch.stack(areas).sum(dim=0)
        return torch.stack([logit * area / total for logit, area in zip(logits, areas[::-1], strict=True)]).sum(dim=0)


def cell_centres(count: int) -> Tensor:
    """float32 [count]: centres of equal cells of -1..1."""
    radius = 1.0 / count
    return -1.0 + radius + 2 * radius * torch.arange(count, dtype=torch.float32)


def query_grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """(points [height*width,2] in row order, cell [2]) of a picture."""
    points = torch.stack(torch.meshgrid(cell_centres(height), cell_centres(width), indexing="ij"), dim=-1)
    return points.reshape(-1, 2), torch.tensor([2.0 / height, 2.0 / width])


def normalise(image: Tensor, mask: Tensor) -> Tensor:
    """uint8 [H,W,3] RGB and mask [H,W] in 0..1 -> float32 [1,4,H,W], the mask in -1..1."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    colours = (image.permute(2, 0, 1).float() / 255.0 - mean) / std
    return torch.cat([colours, (mask.float() * 2.0 - 1.0)[None]])[None]


def refine_reference(
    model: CRM, image: Tensor, mask: Tensor, chunk: int = 802_816, scales: Sequence[float] = SCALES
) -> Tensor:
    """Published inference in plain torch: reflected border, four sizes, every pixel a query. Slow and large.

    Args:
        model: in evaluation mode.
        image: uint8 [H,W,3] RGB. (The published code needs sides above 32.)
        mask: float [H,W], 0..1.
        chunk: queries at a time.
        scales: sizes of the turns.

    Returns:
        Probability float32 [len(scales),H,W], one map a size; the last one is the answer.
    """
    # torch refuses a border that is longer than the side; numpy reflects again.
    bordered = np.pad(normalise(image, mask).numpy(), ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)), mode="reflect")
    x = torch.from_numpy(bordered)
    height, width = spatial(x)
    points, cell = query_grid(height, width)
    results = []
    for scale in scales:
        if float((x[:, 3] + 1).sum()) < 2:  # an empty mask stays empty
            probability = torch.zeros(height, width)
        else:
            features = model.encode(resize(x, (round(height * scale), round(width * scale))))
            parts = [model.query(features, part, cell) for part in points.split(chunk)]
            probability = torch.cat(parts).sigmoid().reshape(height, width)
        x = torch.cat([x[:, :3], (probability - 0.5)[None, None] * 2], dim=1)
        results.append(probability[PAD:-PAD, PAD:-PAD])
    return torch.stack(results)


def load_crm(weights: str | Path | Mapping[str, Tensor], source: str = "checkpoint") -> tuple[CRM, list[str]]:
    """CRM with the weights of an official file (a bare state dict, keys with or without ``module.``).

    Returns:
        (model in evaluation mode, keys of the file that have no part in the result).

    Raises:
        CheckpointError: the file is unreadable, or a key is missing, unknown, misshaped or not finite.
    """
    state = weights if isinstance(weights, Mapping) else load_checkpoint(weights)
    model = CRM()
    dropped = load_strict(model, state, UNUSED, source if isinstance(weights, Mapping) else str(weights))
    return model.eval(), dropped
