"""HRNet-W48 with an FCN head: four resolutions side by side, exchanged again and again.

Deep High-Resolution Representation Learning for Visual Recognition (TPAMI 2020, arXiv 1908.07919). Names and shapes of
the weights are those of MMSegmentation 1.x.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.blocks import BasicBlock, Bottleneck, conv_bn_relu
from crispseg.models.bases.mmseg import ConvModule, concatenate, resize, spatial

WIDTHS = (48, 96, 192, 384)
MODULES = (1, 4, 3)  # of stages 2, 3 and 4
BLOCKS = 4  # of every branch


def _stride2(inputs: int, outputs: int, *, relu: bool = True) -> nn.Sequential:
    layers = conv_bn_relu(inputs, outputs, 3, 2)
    return layers if relu else nn.Sequential(*list(layers)[:2])


class HRModule(nn.Module):
    """Blocks at each resolution, then every map receives the sum of all, brought to its size.

    Args:
        widths: channels of the maps, finest first.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(n, n, 1, 1, False) for _ in range(BLOCKS))) for n in widths
        )
        count = range(len(widths))
        self.fuse_layers = nn.ModuleList(nn.ModuleList(self._path(widths, i, j) for j in count) for i in count)

    @staticmethod
    def _path(widths: tuple[int, ...], target: int, source: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            return nn.Sequential(
                nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target])
            )
        # Down by factors of two; only the last step changes the channels, and has no ReLU.
        steps = [_stride2(widths[source], widths[source]) for _ in range(target - source - 1)]
        return nn.Sequential(*steps, _stride2(widths[source], widths[target], relu=False))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [N,Ci,hi,wi] -> same shapes."""
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        fused = []
        for i, paths in enumerate(self.fuse_layers):
            total: Tensor | None = None
            for j, path in enumerate(paths):  # type: ignore[arg-type, var-annotated]  # a ModuleList
                y = path(maps[j])
                if j > i:
                    # Enlarged by the whole factor, then to the size of the target: the two differ when a side
                    # is not a multiple of 32.
                    height, width = spatial(y)
                    y = resize(y, (height << (j - i), width << (j - i)))
                y = resize(y, spatial(maps[i]))
                total = y if total is None else total + y
            assert total is not None
            fused.append(F.relu(total))
        return fused


class HRNet(nn.Module):
    """Stem at stride 4 and four stages; stage n holds n resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(*(Bottleneck(256 if i else 64, 64, 1, 1, i == 0) for i in range(4)))
        first = conv_bn_relu(256, WIDTHS[0], 3)
        self.transition1 = nn.ModuleList([first, nn.Sequential(_stride2(256, WIDTHS[1]))])
        for stage, count in enumerate(MODULES, start=2):
            if stage > 2:
                new = nn.Sequential(_stride2(WIDTHS[stage - 2], WIDTHS[stage - 1]))
                self.add_module(
                    f"transition{stage - 1}", nn.ModuleList([*(nn.Identity() for _ in range(stage - 1)), new])
                )
            self.add_module(f"stage{stage}", nn.Sequential(*(HRModule(WIDTHS[:stage]) for _ in range(count))))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N,3,H,W] -> maps of 48, 96, 192, 384 channels at strides 4, 8, 16, 32 (rounded up)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer1(F.relu(self.bn2(self.conv2(x))))
        maps = [transition(x) for transition in self.transition1]
        for stage in (2, 3, 4):
            if stage > 2:
                maps.append(getattr(self, f"transition{stage - 1}")[-1](maps[-1]))
            maps = getattr(self, f"stage{stage}")(maps)
        return maps


class FCNHead(nn.Module):
    """All maps joined at stride 4, one 1x1 convolution, classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        width = sum(WIDTHS)
        self.conv_seg = nn.Conv2d(width, classes, 1)
        self.convs = nn.Sequential(ConvModule(width, width))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps -> logits [N,classes,h,w] at stride 4."""
        return self.conv_seg(self.convs(concatenate(maps)))


class FCNHRNet(nn.Module):
    """HRNet-W48 with an FCN head.

    Args:
        num_classes: classes of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = HRNet()
        self.decode_head = FCNHead(num_classes)

    def forward_logits(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,h,w] at stride 4 (rounded up)."""
        return self.decode_head(self.backbone(image))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,H,W]."""
        return resize(self.forward_logits(image), spatial(image))
