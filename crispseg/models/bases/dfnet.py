"""DFNet V1 and V2, the partial-order pruned backbones of SFNet-DF, with the official names of the weights.

Two strided convolutions, then groups of plain (undilated) residual blocks.
"""

from __future__ import annotations

from typing import List, Tuple

from torch import Tensor, nn

from crispseg.models.bases.blocks import BasicBlock, conv_bn_relu

# (name, channels, blocks, stride of the first block) of every group.
_V1 = (("stage2", 64, 3, 2), ("stage3", 128, 3, 2), ("stage4", 256, 3, 2), ("stage5", 512, 1, 1))
_V2 = (
    ("stage2_1", 64, 2, 2),
    ("stage2_2", 128, 1, 1),
    ("stage3_1", 128, 10, 2),
    ("stage3_2", 256, 1, 1),
    ("stage4_1", 256, 4, 2),
    ("stage4_2", 512, 2, 1),
)
_TAPS = {1: ("stage3", "stage4", "stage5"), 2: ("stage2_2", "stage3_2", "stage4_2")}


class DFNet(nn.Module):
    """DFNet.

    Args:
        version: 1 (maps at strides 16, 32, 32) or 2 (maps at strides 8, 16, 32).
    """

    #: Channels of the maps.
    channels = (128, 256, 512)

    def __init__(self, version: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*conv_bn_relu(3, 32, 3, 2), *conv_bn_relu(32, 64, 3, 2))
        self.groups = ["stage1"]
        self.taps = _TAPS[version]
        inputs = 64
        for name, planes, count, stride in _V1 if version == 1 else _V2:
            blocks = [BasicBlock(inputs, planes, stride, 1, project=True)]
            blocks += [BasicBlock(planes, planes, 1, 1, project=False) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(*blocks))
            self.groups.append(name)
            inputs = planes

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """[N,3,H,W] -> three maps of 128, 256 and 512 channels, finest first."""
        x = image
        maps: List[Tensor] = []
        for name in self.groups:
            x = getattr(self, name)(x)
            if name in self.taps:
                maps.append(x)
        return tuple(maps)
