"""Networks of a user, for the tests of --module and --onnx."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=5, width=8, kind="tensor"):
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, num_classes, 1)
        self.aux = nn.Conv2d(width, num_classes, 1)
        self.kind = kind

    def forward(self, x):
        features = self.stem(x)
        logits = self.head(features)
        if self.kind == "dict":
            return {"aux": self.aux(features), "out": F.interpolate(logits, x.shape[2:], mode="bilinear")}
        if self.kind == "full":
            return F.interpolate(logits, x.shape[2:], mode="bilinear")
        if self.kind == "tuple":
            return logits, features
        if self.kind == "twins":
            return logits, self.aux(features)
        if self.kind == "probabilities":
            return logits.softmax(1)
        if self.kind == "enlarged probabilities":
            return F.interpolate(logits.softmax(1), x.shape[2:], mode="bilinear")
        if self.kind == "sigmoid":
            return F.interpolate(logits.sigmoid(), x.shape[2:], mode="bilinear")
        if self.kind == "positive":  # logits from 0 to 1 on a quiet image
            return 0.1 * logits.relu()
        if self.kind == "half":
            return logits.half()
        if self.kind == "text":
            return "logits"
        if self.kind == "infinite":
            return logits / 0
        if self.kind == "binary":
            return logits[:, :1].sigmoid()
        if self.kind == "one-hot":
            return F.one_hot(logits.argmax(1), logits.shape[1]).permute(0, 3, 1, 2).float()
        if self.kind == "labels":
            return logits.argmax(1)
        return logits


def plain(width=8):
    return Net(5, width)


def normalised():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.LayerNorm([5, 11, 17]))


class Strict(Net):
    """Refuses sides that 16 does not divide."""

    def forward(self, x):
        if x.shape[2] % 16 or x.shape[3] % 16:
            raise ValueError(f"sides {tuple(x.shape[2:])} are no multiples of 16")
        return super().forward(x)


def broken():
    raise RuntimeError("no such backbone")


number = 3


def leaves():
    raise SystemExit(3)
