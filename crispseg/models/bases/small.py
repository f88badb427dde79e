"""SmallNet: a compact base segmenter for training from scratch and for the demo bundle.

A residual encoder with strides 4, 8, 16 and 32, a global context vector and a top-down feature pyramid that ends at
level ``finest``: logits at stride 8 (finest=1) or 4 (finest=0). Nothing here is specific to a data set.

Only ops that export to a static ONNX graph without shape arithmetic are used: convolutions, one global mean, and
bilinear resizes to sizes that are constants under tracing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias followed by BatchNorm; padding keeps the size at stride 1."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(cout),
    )


class Block(nn.Module):
    """Residual block of two 3x3 convolutions, projected where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_bn(cin, cout, 3, stride)
        self.conv2 = conv_bn(cout, cout)
        same = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same else conv_bn(cin, cout, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, cin, h, w] -> [B, cout, ceil(h / stride), ceil(w / stride)]."""
        return F.relu(self.shortcut(x) + self.conv2(F.relu(self.conv1(x))))


class SmallNet(nn.Module):
    """Base segmenter; ``forward_logits`` gives logits at its stride, ``forward`` logits at the input's size."""

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, int, int, int] = (56, 112, 176, 224),
        depths: tuple[int, int, int, int] = (2, 2, 3, 2),
        pyramid: int = 80,
        finest: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= finest < len(widths):
            raise ValueError(f"finest {finest}: expected 0 to {len(widths) - 1}")
        self.config = {
            "architecture": "small",
            "num_classes": int(num_classes),
            "widths": list(widths),
            "depths": list(depths),
            "pyramid": int(pyramid),
            "finest": int(finest),
        }
        self.finest = finest
        half = widths[0] // 2
        self.stem = nn.Sequential(
            conv_bn(3, half, 3, 2), nn.ReLU(inplace=True), conv_bn(half, widths[0], 3, 2), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList()
        cin = widths[0]
        for level, (width, depth) in enumerate(zip(widths, depths)):
            blocks = [Block(cin if i == 0 else width, width, 2 if level and i == 0 else 1) for i in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            cin = width
        self.context = nn.Sequential(nn.Conv2d(cin, pyramid, 1), nn.ReLU(inplace=True))
        # Levels below the finest keep their index and hold nothing.
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, pyramid, 1) if level >= finest else nn.Identity() for level, width in enumerate(widths)
        )
        self.smooth = nn.ModuleList(
            conv_bn(pyramid, pyramid) if level >= finest else nn.Identity() for level in range(len(widths) - 1)
        )
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(pyramid, num_classes, 1)

    def forward_logits(self, x: Tensor) -> Tensor:
        """[B, 3, h, w] normalised -> logits [B, num_classes, ceil(h / s), ceil(w / s)] with s = 4 * 2**finest."""
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        top = self.laterals[-1](levels[-1]) + self.context(levels[-1].mean((2, 3), keepdim=True))
        for level in range(len(levels) - 2, self.finest - 1, -1):
            fine = self.laterals[level](levels[level])
            size = (int(fine.shape[2]), int(fine.shape[3]))
            top = fine + F.interpolate(top, size=size, mode="bilinear", align_corners=False)
            top = F.relu(self.smooth[level](top))
        return self.classifier(self.dropout(top))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, h, w] normalised -> logits [B, num_classes, h, w], upsampled bilinearly (half-pixel centres)."""
        size = (int(x.shape[2]), int(x.shape[3]))
        return F.interpolate(self.forward_logits(x), size=size, mode="bilinear", align_corners=False)


def from_config(config: dict) -> SmallNet:
    """Rebuilds the network from ``SmallNet.config`` (plain numbers and lists)."""
    w, d = ([int(v) for v in config[key]] for key in ("widths", "depths"))
    return SmallNet(
        int(config["num_classes"]),
        (w[0], w[1], w[2], w[3]),
        (d[0], d[1], d[2], d[3]),
        int(config["pyramid"]),
        int(config["finest"]),
    )


__all__ = ["SmallNet", "from_config"]
