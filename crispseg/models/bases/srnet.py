"""SRNet: a dilated ResNet whose head reasons over a small graph made of its channels.

Towards Efficient Scene Understanding via Squeeze Reasoning (IEEE TIP 2021, arXiv 2011.03308). Names and shapes of
the weights are those of the official code (github.com/lxtGH/SFSegNets); every bilinear resize aligns corners.
"""

from __future__ import annotations

from torch import Tensor, nn

from crispseg.models.bases.blocks import deep_stem_resnet, resize, spatial

_NODES, _FEATURES = 32, 8  # of the graph; together the 256 channels of the projections


class SqueezeReasoning(nn.Module):
    """Graph reasoning over 32 nodes of 8 features, each feature one channel's correlation over the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = _NODES * _FEATURES
        self.t = nn.Conv2d(channels, inner, 1, bias=False)
        self.p = nn.Conv2d(channels, inner, 1, bias=False)
        self.g = nn.Conv2d(channels, inner, 1, bias=False)
        self.conv_adj = nn.Conv1d(_NODES, _NODES, 1, bias=False)
        self.bn_adj = nn.BatchNorm1d(_NODES)
        self.conv_wg = nn.Conv1d(_FEATURES, _FEATURES, 1, bias=False)
        self.bn_wg = nn.BatchNorm1d(_FEATURES)
        self.relu = nn.ReLU(inplace=True)
        self.z = nn.Conv2d(inner, channels, 1, groups=inner, bias=False)
        self.gn = nn.GroupNorm(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N,channels,h,w] -> same."""
        # The dot product of every channel of p with that of g. The sum runs over all pixels: about 1e5 at 1024x2048,
        # more than half precision holds.
        dots = (self.p(x).float() * self.g(x).float()).sum((2, 3)).to(x.dtype)
        nodes = dots.reshape(-1, _FEATURES, _NODES).transpose(1, 2)
        nodes = self.relu(self.bn_adj(self.conv_adj(nodes))) + nodes
        features = self.relu(self.bn_wg(self.conv_wg(nodes.transpose(1, 2))))
        # Not the inverse of the reshape above: the weights were trained with this order of the channels.
        scale = features.transpose(1, 2).reshape(-1, _NODES * _FEATURES, 1, 1)
        return x + self.gn(self.z(self.t(x) * scale))


class SRHead(nn.Module):
    """Projection to 512 channels, reasoning, classifier."""

    def __init__(self, inputs: int, classes: int, width: int = 512) -> None:
        super().__init__()
        self.in_module = nn.Conv2d(inputs, width, 1)
        self.module = SqueezeReasoning(width)
        self.final = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,h,w] -> logits [N,classes,h,w]."""
        return self.final(self.module(self.in_module(x)))


class SRNet(nn.Module):
    """SRNet.

    Args:
        num_classes: classes of the logits.
        depth: of the ResNet, 50 or 101.
    """

    #: Nodes of the exported graph, by patterns of their names, that a conversion to half precision must leave alone.
    float32_nodes = (r"head\.module(/(?!Add_2)|\.(conv_adj|conv_wg|relu|z|gn)\b)",)

    def __init__(self, num_classes: int, depth: int = 50) -> None:
        super().__init__()
        layers, channels = deep_stem_resnet(depth, strides=(1, 2, 1, 1))
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.head = SRHead(channels[-1], num_classes)

    def forward_logits(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,h,w] at stride 8 (rounded up)."""
        x = image
        for layer in (self.layer0, self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.head(x)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image [N,3,H,W] -> logits [N,classes,H,W]."""
        return resize(self.forward_logits(image), spatial(image))
