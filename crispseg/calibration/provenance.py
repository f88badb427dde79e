"""What a calibrated network says about where it came from."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from crispseg.bundle import Bundle
from crispseg.bundle_calibration import NetCalibration, preprocessing_hash, source_names
from crispseg.calibration.images import ImageSet
from crispseg.errors import InputError


def sources(bundle: Bundle, role: str) -> dict[str, str]:
    """SHA-256 of the ONNX file of a network and of the files that hold its weights."""
    file = getattr(bundle, role).file
    return {name: bundle.files[name].sha256 for name in sorted({file, *source_names(bundle.file(file))})}


def describe(
    bundle: Bundle,
    role: str,
    images: ImageSet,
    method: str,
    *,
    excluded: tuple[str, ...],
    macs_share: float,
    options: Mapping[str, Any],
) -> NetCalibration:
    """The record of one network. No date: the same inputs give the same record."""
    return NetCalibration(
        file=f"{role}.int8.onnx",
        sources=sources(bundle, role),
        method=method,
        images_sha256=images.sha256,
        image_count=images.count,
        preprocessing_sha256=preprocessing_hash(bundle, role),
        seed=images.seed,
        synthetic=images.synthetic,
        excluded=excluded,
        macs_share=round(macs_share, 6),
        options=dict(options),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of what computes the ranges and writes the file."""
    import numpy
    import onnx
    import onnxruntime

    import crispseg

    return {
        "crispseg": crispseg.__version__,
        "numpy": numpy.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def date() -> str:
    """Now, UTC; the time of SOURCE_DATE_EPOCH when that is set, for reproducible bundles.

    Raises:
        InputError: SOURCE_DATE_EPOCH is no number of seconds.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        seconds = time.gmtime(None if given is None else int(given))
    except (ValueError, OverflowError, OSError):
        raise InputError(f"SOURCE_DATE_EPOCH={given}: expected a number of seconds since 1970") from None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", seconds)
