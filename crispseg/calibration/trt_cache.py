"""TensorRT's calibration cache: ranges for implicit quantisation (TensorRT 8.x and 10; removed in 11).

Text. The first line names the TensorRT version and the calibrator, ``TRT-8501-EntropyCalibration2``. Each further line
is ``tensor: XXXXXXXX``: eight hex digits, the bits of a float32, most significant byte first. The number is the scale:
the value that integer 1 stands for, so 127 times it is the range. TensorRT checks of the header only the calibrator;
the version says who wrote the file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

import numpy as np

from crispseg.calibration.histogram import LEVELS
from crispseg.errors import InputError

HEADER = "TRT-8501-EntropyCalibration2"
_FIRST = re.compile(r"TRT-[0-9]+-[A-Za-z0-9]+\Z")
_LINE = re.compile(r"(?P<name>.+): (?P<bits>[0-9a-fA-F]{1,8})\Z")
_MOST = 1 << 24  # bytes


def dump(thresholds: Mapping[str, float], header: str = HEADER) -> bytes:
    """The cache of these ranges (tensor -> largest magnitude); tensors without a range above 0 are left out."""
    lines = [header]
    for name, threshold in thresholds.items():
        if threshold > 0:
            lines.append(f"{name}: {struct.pack('>f', np.float32(threshold / LEVELS)).hex()}")
    return ("\n".join(lines) + "\n").encode("utf-8")


def parse(data: bytes) -> tuple[str, dict[str, float]]:
    """(header, tensor -> scale as float32) of a cache, in the order of the file.

    Raises:
        InputError: another format, a scale that is not finite and above 0, or a tensor that stands twice.
    """
    try:
        lines = data.decode("utf-8").splitlines() if len(data) <= _MOST else []
    except UnicodeDecodeError:
        lines = []
    if not lines or not _FIRST.match(lines[0]):
        raise InputError(f"calibration cache: expected a first line such as {HEADER}, found something else")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], 2):
        found = _LINE.match(line)
        if not line.strip():
            continue
        if not found:
            raise InputError(f"calibration cache, line {number}: expected 'tensor: 8 hex digits', found {line[:60]!r}")
        value = struct.unpack(">f", bytes.fromhex(found["bits"].zfill(8)))[0]
        if not 0 < value < float("inf") or found["name"] in scales:
            raise InputError(f"calibration cache, line {number}: expected a positive scale for each tensor once")
        scales[found["name"]] = value
    return lines[0], scales
