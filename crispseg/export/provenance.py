"""What a bundle says about where it came from: tools, checkpoints, untrained weights."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crispseg
from crispseg.environment import commit, package_version
from crispseg.files import hash_file
from crispseg.models.checkpoints import load_training


def origin(random: Sequence[str], results: str) -> dict[str, Any]:
    """The versions that wrote a bundle, and a warning when networks of it are untrained.

    Args:
        random: roles of the networks with random weights.
        results: what then means nothing ("labels", "masks").
    """
    notes: dict[str, Any] = {}
    if random:
        notes["warning"] = (
            f"RANDOM WEIGHTS: {' and '.join(random)} untrained. For speed studies only; the {results} mean nothing."
        )
    packages = {name: package_version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")}
    notes["tools"] = {
        "crispseg": crispseg.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        **packages,
    }
    return notes


def checkpoint_notes(path: str | Path, dropped: list[str]) -> dict[str, Any]:
    """Name, SHA-256, dropped keys and training record of a checkpoint."""
    groups = sorted({re.sub(r"\.\d.*", "", key) for key in dropped})
    source: dict[str, Any] = {"checkpoint": Path(path).name, "sha256": hash_file(path)}
    if dropped:
        source["dropped"] = {"keys": len(dropped), "groups": groups}
    training = load_training(path)
    if training:
        source["training"] = training
    return source
