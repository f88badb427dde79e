"""SegRefiner (Wang et al., NeurIPS 2023): a mask is denoised by discrete diffusion, six calls of one U-Net.

The state dict has the keys of the official checkpoints; the low-resolution (LR) and high-resolution (HR) checkpoints
hold the same network with other values. The sampling loop, windows and pasting are in ``crispseg/runtime``: they need
no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor, nn

from crispseg.errors import CheckpointError
from crispseg.models.checkpoints import load_checkpoint, load_strict
from crispseg.models.refiners.mask_unet import GROUPS, MaskUNet, Probe

#: Constants of a training loss; official strict loading wants them, inference does not.
DROPPABLE = (r"loss_texture\.",)
#: Normalisation of the picture: RGB, 0..255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: Chance that a pixel is still fine at step t (cumulative product; the official config calls it `betas`).
FINE_LEFT = (0.8, 0.64, 0.48, 0.32, 0.16, 0.0)


@dataclass(frozen=True)
class SegRefinerConfig:
    """What fixes the structure; the defaults are the official ones.

    Attributes:
        channels: of the finest level, a multiple of 32.
        multipliers: channels of each level / ``channels``, finest first.
        repeats: residual blocks of a level on the way down; one more on the way up.
        attention: strides at which attention follows every residual block.
        heads: of the attention.
        steps: of the diffusion.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    repeats: int = 2
    attention: tuple[int, ...] = (16, 32)
    heads: int = 4
    steps: int = len(FINE_LEFT)


class SegRefiner(nn.Module):
    """The network of a SegRefiner checkpoint."""

    def __init__(self, config: SegRefinerConfig = SegRefinerConfig()) -> None:
        """Random weights of the given structure."""
        super().__init__()
        self.config = config
        self.denoise_model = MaskUNet(
            config.channels, config.multipliers, config.repeats, config.attention, config.heads, config.steps
        )

    @property
    def stride(self) -> int:
        """The sides of the input are multiples of this."""
        return 2 ** (len(self.config.multipliers) - 1)

    def forward(self, image: Tensor, t: Tensor, probe: Optional[Probe] = None) -> Tensor:
        """Logits float [N, 1, H, W] of normalised [RGB, mask] float [N, 4, H, W] at time steps int64 [N].

        Raises:
            ValueError: the image has another shape.
        """
        if image.dim() != 4 or image.shape[1] != 4 or image.shape[2] % self.stride or image.shape[3] % self.stride:
            raise ValueError(
                f"image: expected [N,4,H,W] with sides a multiple of {self.stride}, found {list(image.shape)}"
            )
        return self.denoise_model(image, t, probe)


def load_segrefiner(path: str | Path) -> tuple[SegRefiner, list[str]]:
    """The network of an official checkpoint, and the keys of the file that inference does not need.

    The number of channels is taken from the file, so that narrower networks of the same plan load too.

    Raises:
        CheckpointError: not a readable checkpoint, or one of another network.
    """
    state = load_checkpoint(path)
    module = SegRefiner(SegRefinerConfig(channels=_channels(state, path)))
    return module.eval(), load_strict(module, state, DROPPABLE, str(path))


def random_segrefiner(seed: int = 0, config: SegRefinerConfig = SegRefinerConfig()) -> SegRefiner:
    """An untrained network, for speed studies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegRefiner(config).eval()


def _channels(state: Mapping[str, Tensor], path: str | Path) -> int:
    stem = state.get("denoise_model.input_blocks.0.0.weight")
    if stem is None or stem.dim() != 4 or stem.shape[0] % GROUPS or not 0 < stem.shape[0] <= 1024:
        found = "no such key" if stem is None else f"shape {list(stem.shape)}"
        raise CheckpointError(
            f"{path}: expected denoise_model.input_blocks.0.0.weight of shape [C, 4, 3, 3] with C a multiple of "
            f"{GROUPS}, found {found}; give an LR or HR checkpoint of SegRefiner"
        )
    return int(stem.shape[0])
