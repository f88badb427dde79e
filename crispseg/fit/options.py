"""What a training run is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from crispseg.errors import InputError


@dataclass(frozen=True)
class FitOptions:
    """Options of ``fit_base`` and ``fit_refiner``.

    ``folders`` are (images, labels) directories with matching stems; ``scenes`` is the number of procedural scenes to
    render beside them, drawn with probability ``scene_share``. ``height`` x ``width`` is the full-resolution frame;
    the base sees it scaled by ``scale``. ``scale_range`` is the random scaling of the pictures before they are cropped:
    to what the base sees (default 0.35 to 1.05 of the full size) or to full-resolution frames (refiner, 0.8 to 1.3).
    """

    out: Path
    height: int
    width: int
    num_classes: int
    scale: float = 0.5
    folders: tuple[tuple[Path, Path], ...] = ()
    validation: tuple[Path, Path] | None = None
    scenes: int = 0
    scene_share: float = 0.25
    steps: int = 2000
    batch: int = 8
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: int = 100
    ema: float = 0.998
    scale_range: tuple[float, float] | None = None
    class_balance: float = 0.35
    validate_every: int = 400
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    resume: bool = False
    init: Path | None = None  # checkpoint to start from
    stride: int = 8  # of the logits of a base, 4 or 8
    # refiner only
    base: Path | None = None
    base_name: str = "small"
    bundle: str | None = None  # name of the bundle whose base was given, for the record
    planes: tuple[int, ...] = (16, 32, 48, 64, 96)
    repeats: tuple[int, ...] = (1, 1, 1, 1, 1)
    features: tuple[str, ...] = ("rgb",)
    extent: str = "image"
    ensembler: str = "gated"
    density: float = 0.12
    threshold: float | None = None
    iou_weight: float = 0.0  # of the merged map's soft IoU, half of it near label edges, beside the cross-entropies
    logit_noise: float = 0.0  # deviation of the noise on the base's logits while the refiner trains

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            InputError: a value is out of range or no training data is named.
        """
        checks = (
            (self.height >= 32 and self.width >= 32, f"size {self.height}x{self.width}: expected at least 32x32"),
            (2 <= self.num_classes <= 255, f"{self.num_classes} classes: expected 2 to 255"),
            (0.1 <= self.scale <= 1, f"--scale {self.scale}: expected 0.1 to 1"),
            (self.steps >= 1 and self.batch >= 1, f"steps {self.steps}, batch {self.batch}: expected at least 1"),
            (0 <= self.ema < 1, f"ema {self.ema}: expected 0 <= ema < 1"),
            (
                self.scale_range is None or 0.05 < self.scale_range[0] <= self.scale_range[1] <= 8,
                f"--scale-range {self.scale_range}: expected two numbers between 0.05 and 8, the smaller first",
            ),
            (self.stride in (4, 8), f"--stride {self.stride}: expected 4 or 8"),
            (self.lr > 0, f"--lr {self.lr}: expected more than 0"),
            (len(self.planes) == len(self.repeats), "planes and repeats: expected the same number of levels"),
            (
                not self.scenes or self.num_classes == 11,
                "--scenes: they hold CamVid's 11 classes; use --classes camvid",
            ),
            (self.iou_weight >= 0, f"--iou-weight {self.iou_weight}: expected 0 or more"),
            (self.logit_noise >= 0, f"--logit-noise {self.logit_noise}: expected 0 or more"),
            (0 < self.density < 1, f"--density {self.density}: expected between 0 and 1"),
            (bool(self.folders) or self.scenes > 0, "no training data: give --images and --labels, or --scenes N"),
        )
        for good, message in checks:
            if not good:
                raise InputError(message)

    def base_size(self) -> tuple[int, int]:
        """(height, width) of the frame that the base sees, in px."""
        return max(1, round(self.height * self.scale)), max(1, round(self.width * self.scale))

    def record(self) -> dict:
        """JSON-able form for checkpoints and reports; folders by name only, so that no machine's paths travel."""
        values = dataclasses.asdict(self)
        values["folders"] = [[image.parent.name or image.name, label.name] for image, label in self.folders]
        values["validation"] = None if self.validation is None else self.validation[0].parent.name
        values["base"] = None if self.base is None else self.base.name
        values["init"] = None if self.init is None else self.init.name
        values.pop("out")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
