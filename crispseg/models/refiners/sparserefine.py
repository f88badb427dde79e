"""SparseRefine: a sparse U-Net that classifies the uncertain pixels of a base again at full resolution.

The state dict has exactly the keys of the official checkpoints (without their "model." prefix), because the modules
nest as the official ones do. To walk the network without knowing a key:

    refiner.stem                 RowConv 3 -> c_0, nothing after it
    refiner.root                 Level 0; each Level has
        .encoder                 tuple of Blocks
        .descent                 None on the last level, else norm_down, down (RowConv), below (Level),
                                 norm_up, up (RowConv)
        .decoder                 tuple of Blocks; the first takes concat[level rows, rows from below]
      each Block has             norm1, conv1, norm2, conv2 and shortcut (RowConv without taps, or None)
    refiner.norm                 last BatchNorm
    refiner.classifier           Linear(c_0 -> C)
    refiner.ensembler            GatedEnsembler (attn, fuser: Linear, ReLU, Linear) or EntropyEnsembler
    refiner.selector             EntropySelector or LearnableSelector

Every norm is a RowNorm (BatchNorm over rows) and is followed by a ReLU. ``RowConv.kernel`` is [9, Cin, Cout] with tap
k = ky + 3 * kx, or [Cin, Cout] for a shortcut; no convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from crispseg.models.refiners.unet import Backbone, Level, Probe, RowConv, RowNorm
from crispseg.sparse.ensemble import by_entropy, gated
from crispseg.sparse.maps import EXTENTS, LevelMaps, Size, coords_of, pyramid
from crispseg.sparse.rows import (
    feature_channels,
    full_logits,
    image_size,
    normalised,
    pixel_features,
    scatter_labels,
)
from crispseg.sparse.select import UPSAMPLINGS, entropy, logits_at, select, upsample_logits

SELECTORS = ("entropy", "learnable")
ENSEMBLERS = ("gated", "entropy")
_HIDDEN = 64  # width of the gate and of the fuser
_LOOK = 16  # channels of the learnable selector's view of the image


@dataclass(frozen=True)
class SparseRefineConfig:
    """What fixes a refiner's structure and data path. The defaults are the official ones.

    Attributes:
        num_classes: C.
        planes: channels of each level, finest first.
        repeats: blocks of each level on either side; one number stands for all levels.
        features: columns of the input rows, see ``pixel_features``.
        channel_order: order in which the network takes colours; the official data path gives "bgr".
        mean: by network channel, 0..255. (The official path applies RGB statistics to BGR colours.)
        std: by network channel, 0..255.
        selector: "entropy" or "learnable".
        threshold: a pixel is active when its entropy (or the learnable score) is above.
        ensembler: "gated" or "entropy".
        extent: bound of the coarser levels, "active" (official) or "image".
        upsample: how low-resolution logits are read, "nearest" (official), "bilinear" or "bilinear_corners".
    """

    num_classes: int = 19
    planes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    repeats: Union[int, tuple[int, ...]] = 2
    features: tuple[str, ...] = ("rgb",)
    channel_order: str = "bgr"
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    selector: str = "entropy"
    threshold: float = 0.3
    ensembler: str = "gated"
    extent: str = "active"
    upsample: str = "nearest"

    def __post_init__(self) -> None:
        """Check every field, and spell `repeats` out per level."""
        for name in ("planes", "features", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        repeats = self.repeats
        repeats = (repeats,) * len(self.planes) if isinstance(repeats, int) else tuple(repeats)
        object.__setattr__(self, "repeats", repeats)
        if not self.planes or min(self.planes) < 1 or len(repeats) != len(self.planes) or min(repeats) < 1:
            raise ValueError(f"planes and repeats: expected as many positive numbers, found {self.planes}, {repeats}")
        if not 2 <= self.num_classes <= 255:
            raise ValueError(f"num_classes: expected 2..255, found {self.num_classes}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean, std: expected 3 values each, std above 0, found {self.mean}, {self.std}")
        for name, known in (
            ("selector", SELECTORS),
            ("ensembler", ENSEMBLERS),
            ("extent", EXTENTS),
            ("upsample", UPSAMPLINGS),
            ("channel_order", ("rgb", "bgr")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {known}, found {getattr(self, name)!r}")
        if self.in_channels < 1:
            raise ValueError("features: expected at least one, found none")

    @property
    def in_channels(self) -> int:
        """Columns of the input rows."""
        return feature_channels(self.features, self.num_classes)

    @property
    def levels(self) -> int:
        """Number of scales."""
        return len(self.planes)

    @property
    def level_repeats(self) -> tuple[int, ...]:
        """`repeats`, one number a level."""
        return self.repeats if isinstance(self.repeats, tuple) else (self.repeats,) * self.levels


@dataclass(frozen=True)
class Refined:
    """Result of a refiner.

    Attributes:
        mask: bool [B, H, W], the active pixels.
        coords: long [N, 3], (b, y, x), raster order.
        yi: float [N, C], base logits at the sites.
        yo: float [N, C], refiner logits.
        ye: float [N, C], ensemble logits: the answer.
    """

    mask: Tensor
    coords: Tensor
    yi: Tensor
    yo: Tensor
    ye: Tensor


class EntropySelector(nn.Module):
    """Score of a pixel: entropy of the base's logits."""

    def forward(self, image: Tensor, logits: Tensor) -> Tensor:
        """Normalised image (unused), full logits float [B, C, H, W] -> score float [B, H, W]."""
        return entropy(logits, 1)


class LearnableSelector(nn.Module):
    """Score of a pixel: a small network on the normalised colours and the base's logits."""

    def __init__(self, num_classes: int) -> None:
        """Build for C classes."""
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, _LOOK, 3, padding=1), nn.ReLU(), nn.Conv2d(_LOOK, _LOOK, 3, padding=1), nn.ReLU()
        )
        self.mlp = nn.Sequential(
            nn.Linear(num_classes + _LOOK, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(self, image: Tensor, logits: Tensor) -> Tensor:
        """Normalised image float [B, H, W, 3], full logits float [B, C, H, W] -> score float [B, H, W] in 0..1."""
        look = self.conv(image.permute(0, 3, 1, 2))
        return self.mlp(torch.cat([logits, look], 1).permute(0, 2, 3, 1)).squeeze(-1).sigmoid()


class GatedEnsembler(nn.Module):
    """See ``crispseg.sparse.ensemble.gated``."""

    mode = "gated"

    def __init__(self, num_classes: int) -> None:
        """Build for C classes."""
        super().__init__()
        self.attn = nn.Sequential(nn.Linear(2 * num_classes + 2, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 2))
        self.fuser = nn.Sequential(nn.Linear(num_classes, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, num_classes))

    def weights(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(w1, b1, w2, b2) of the gate and (w3, b3, w4, b4) of the fuser: w [out, in], b [out]."""

        def layers(net: Any) -> tuple[Tensor, ...]:
            return net[0].weight, net[0].bias, net[2].weight, net[2].bias

        return layers(self.attn), layers(self.fuser)

    def forward(self, yi: Tensor, yo: Tensor) -> Tensor:
        """Two float [N, C] -> float [N, C]."""
        return gated(yi, yo, *self.weights())[0]


class EntropyEnsembler(nn.Module):
    """See ``crispseg.sparse.ensemble.by_entropy``."""

    mode = "entropy"

    def forward(self, yi: Tensor, yo: Tensor) -> Tensor:
        """Two float [N, C] -> float [N, C]."""
        return by_entropy(yi, yo)


class SparseRefiner(nn.Module):
    """The refiner. See the module's docstring for its parts."""

    def __init__(self, config: Optional[SparseRefineConfig] = None) -> None:
        """Build with random weights; the official structure by default."""
        super().__init__()
        self.config = config = config or SparseRefineConfig()
        self.selector = EntropySelector() if config.selector == "entropy" else LearnableSelector(config.num_classes)
        self.backbone = Backbone(config.in_channels, config.planes, config.level_repeats)
        self.classifier = nn.Linear(config.planes[0], config.num_classes)
        self.ensembler = GatedEnsembler(config.num_classes) if config.ensembler == "gated" else EntropyEnsembler()

    @property
    def stem(self) -> RowConv:
        """First convolution."""
        return self.backbone.stem

    @property
    def root(self) -> Level:
        """Finest level."""
        return self.backbone.root

    @property
    def norm(self) -> RowNorm:
        """Norm before the classifier."""
        return self.backbone.norm

    def maps(self, coords: Tensor, size: Size) -> tuple[LevelMaps, ...]:
        """Sites and maps of every level for sites int [N, 3] on a grid of `size`."""
        return pyramid(coords, size, self.config.levels, self.config.extent)

    def select(self, image: Tensor, logits: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3] RGB, logits float [B, C, h, w] -> active pixels bool [B, H, W]. No gradient."""
        config, size = self.config, image_size(image)
        with torch.no_grad():
            if config.selector == "entropy" and config.upsample == "nearest":
                score = upsample_logits(entropy(logits, 1)[:, None], size)[:, 0]
            else:
                full = upsample_logits(logits, size, config.upsample)
                score = self.selector(normalised(image, config.channel_order, config.mean, config.std), full)
            return score > config.threshold

    def rows(self, image: Tensor, logits: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Input rows x float [N, F] and base logits yi float [N, C] at sites int [N, 3]."""
        config = self.config
        yi = logits_at(logits, coords, image_size(image), config.upsample)
        x = pixel_features(
            image,
            coords,
            yi,
            features=config.features,
            channel_order=config.channel_order,
            mean=config.mean,
            std=config.std,
        )
        return x, yi

    def forward_rows(
        self,
        x: Tensor,
        yi: Tensor,
        coords: Tensor,
        size: Size,
        maps: Optional[Sequence[LevelMaps]] = None,
        probe: Optional[Probe] = None,
    ) -> tuple[Tensor, Tensor]:
        """Classify rows; differentiable.

        Args:
            x: float [N, F] input rows.
            yi: float [N, C] base logits of the rows.
            coords: int [N, 3], (b, y, x), raster order, no duplicates.
            size: (H, W) of the image.
            maps: result of ``maps(coords, size)`` when it is known.
            probe: called with ("stem" | "enc0" | "down1" | ..., rows) for every named intermediate result.

        Returns:
            yo float [N, C] and ye float [N, C].
        """
        features = self.backbone(x, self.maps(coords, size) if maps is None else maps, probe)
        yo = self.classifier(features)
        return yo, self.ensembler(yi, yo)

    def refine(self, image: Tensor, logits: Tensor, mask: Optional[Tensor] = None) -> Refined:
        """Refine the uncertain pixels of a batch.

        Args:
            image: uint8 [B, H, W, 3], RGB.
            logits: float [B, C, h, w] of the base, at its own stride or at full size.
            mask: bool [B, H, W], the pixels to refine; the selector's when None. Training may pass a subset.

        Raises:
            ValueError: shapes that do not fit.
        """
        size = image_size(image)
        if logits.dim() != 4 or logits.shape[:2] != (image.shape[0], self.config.num_classes):
            raise ValueError(
                f"logits: expected [{image.shape[0]},{self.config.num_classes},h,w], found {list(logits.shape)}"
            )
        mask = self.select(image, logits) if mask is None else mask
        if tuple(mask.shape) != tuple(image.shape[:3]):
            raise ValueError(f"mask: expected {list(image.shape[:3])}, found {list(mask.shape)}")
        coords = coords_of(mask)
        x, yi = self.rows(image, logits, coords)
        yo, ye = self.forward_rows(x, yi, coords, size)
        return Refined(mask, coords, yi, yo, ye)

    def forward(self, image: Tensor, logits: Tensor, mask: Optional[Tensor] = None) -> Refined:
        """Same as ``refine``."""
        return self.refine(image, logits, mask)

    def full_logits(self, refined: Refined, logits: Tensor, rows: Optional[Tensor] = None) -> Tensor:
        """Full-size logits float [B, C, H, W]: the base's, upsampled, with `rows` (default ye) at the active pixels."""
        size = (int(refined.mask.shape[1]), int(refined.mask.shape[2]))
        full = upsample_logits(logits, size, self.config.upsample)
        return full_logits(full, refined.coords, refined.ye if rows is None else rows)

    def labels(self, refined: Refined, logits: Tensor, rows: Optional[Tensor] = None) -> Tensor:
        """Class of every pixel, uint8 [B, H, W]: the base's, with those of `rows` (default ye) at the active pixels."""
        size = (int(refined.mask.shape[1]), int(refined.mask.shape[2]))
        dense = select(logits, size, float("inf"), self.config.upsample)
        rows = refined.ye if rows is None else rows
        return scatter_labels(dense.labels, dense.confidence, refined.coords, rows)[0]
