"""Sizes and places of a GPU run, shared by every section. Python 3.8, nothing but the standard library."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Tuple

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
EMULATED = "emulated"
IMAGE = "kernels.image"  # in the work folder, as these two
REFINER, REFINER_INT8 = "refiner.onnx", "refiner.int8.onnx"


def int8_name(name: str) -> str:
    """Name of the int8 form that lies beside a refiner: refiner.onnx -> refiner.int8.onnx."""
    stem = name[: -len(".onnx")] if name.endswith(".onnx") else name
    return stem + ".int8.onnx"


@dataclass(frozen=True)
class Settings:
    """One run. ``work``: folder for builds and intermediate files; ``stride``: frame pixels per logit pixel."""

    work: str
    dry_run: bool = False
    height: int = 1024
    width: int = 2048
    stride: int = 4
    classes: int = 19
    planes: Tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    repeats: int = 2
    density: float = 0.118
    threshold: float = 0.3
    warmup: int = 20
    replays: int = 100
    inner: int = 10  # launches of one layer in one graph, so that a launch's own cost is small beside it
    matmul: int = 8192
    base_blocks: int = 31

    @property
    def folder(self) -> Path:
        """``work`` as a path."""
        return Path(self.work)

    @property
    def capacity(self) -> int:
        """Rows of level 0: a quarter of the frame, as the demo bundles have it."""
        return self.height * self.width // 4

    def save(self) -> None:
        """Write to ``work``/settings.json for the sections, which are processes of their own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(asdict(self)))


def load_settings(folder: Path) -> Settings:
    """The settings that ``save`` wrote."""
    values: Dict[str, Any] = json.loads((folder / "settings.json").read_text())
    values["planes"] = tuple(values["planes"])
    return Settings(**values)


def tiny(work: str) -> Settings:
    """Sizes for the emulated driver, which runs every thread of a block one after the other."""
    return Settings(
        work, dry_run=True, height=24, width=40, stride=4, classes=5, planes=(16, 32), repeats=1, density=0.2,
        warmup=1, replays=2, inner=1, matmul=32, base_blocks=1,
    )  # fmt: skip


def environment(settings: Settings) -> Dict[str, str]:
    """Environment of the sections: this tree's package and the libraries that the build section made."""
    found = dict(os.environ)
    found["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), found.get("PYTHONPATH", "")) if p)
    built = settings.folder / "libraries.json"
    if built.is_file():
        found.update(json.loads(built.read_text()))
    return found
