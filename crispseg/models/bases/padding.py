"""Networks that want sides of a certain multiple: the image is padded inside, and what was added is cut off again.

As MMSegmentation tests (its ``size_divisor``): zeros after normalisation, right and bottom; the logits are enlarged to
the padded size and cropped there. In the module, and so in the exported graph, it is the same in every engine.
"""

from __future__ import annotations

from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from crispseg.models.bases.blocks import spatial
from crispseg.models.bases.info import BaseInfo


class Padded(nn.Module):
    """A base behind a padding of its image to multiples of a number.

    Args:
        module: maps an image [N,3,H,W] to logits; its ``forward_logits`` is preferred.
        multiple: both sides that ``module`` sees are multiples of it.
        upsample: how logits are enlarged to the padded size: "bilinear", "bilinear_corners" or "nearest".
    """

    def __init__(self, module: nn.Module, multiple: int, upsample: str = "bilinear") -> None:
        super().__init__()
        self.module = module
        self.multiple = multiple
        self.upsample = upsample

    @property
    def float32_nodes(self) -> Sequence[str]:
        """Those of the network inside."""
        return getattr(self.module, "float32_nodes", ())

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that the network inside sees."""
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def forward_logits(self, image: Tensor) -> Tensor:
        """Image [N,3,H,W] -> its own logits when H and W are such multiples, else logits [N,C,H,W].

        A padded map cannot be cropped at its stride: the border seldom lies between two of its cells.
        """
        size = spatial(image)
        wanted = self.padded_size(*size)
        call = getattr(self.module, "forward_logits", self.module)
        if wanted == size:
            return call(image)
        logits = call(F.pad(image, (0, wanted[1] - size[1], 0, wanted[0] - size[0])))
        return self._enlarged(logits, wanted)[:, :, : size[0], : size[1]]

    def forward(self, image: Tensor) -> Tensor:
        """Image [N,3,H,W] -> logits [N,C,H,W]."""
        return self._enlarged(self.forward_logits(image), spatial(image))

    def _enlarged(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        if spatial(logits) == size:
            return logits
        if self.upsample == "nearest":
            return F.interpolate(logits, size=size, mode="nearest")
        corners = self.upsample == "bilinear_corners"
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=corners)


def padded(module: nn.Module, info: BaseInfo) -> nn.Module:
    """The base behind the padding that its record asks for, if any."""
    return Padded(module, info.pad_to, info.upsample) if info.pad_to > 1 else module
