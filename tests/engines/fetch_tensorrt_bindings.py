"""Fetch the Python bindings of TensorRT releases for test_tensorrt_bindings.py: about 1 MB each, no TensorRT, no GPU.

    python tests/engines/fetch_tensorrt_bindings.py FOLDER [VERSION ...]

Installs the wheel into FOLDER/VERSION with pip (its licence allows use, not redistribution: nothing of it is in this
repository). Then: CRISPSEG_TRT_BINDINGS=FOLDER pytest tests/engines/test_tensorrt_bindings.py. For the whole flow put
that release's headers, NvOnnxParser.h among them, into FOLDER/VERSION/include; those of the same major version and a
near minor one serve as well. 8.5 has no wheel.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "8.6.1": "tensorrt-bindings",
    "10.0.1": "tensorrt-cu12-bindings",
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu13-bindings",
    "10.16.1.11": "tensorrt-cu13-bindings",
    "11.0.0.114": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}


def main(folder: str, *versions: str) -> None:
    """Fill ``folder``; a version that is there already is left alone, one without a wheel for this Python is named."""
    for version in versions or PACKAGES:
        target = Path(folder) / version
        if (target / "tensorrt_bindings").is_dir():
            continue
        name = PACKAGES.get(version, "tensorrt-cu13-bindings")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        if subprocess.run([*command, f"{name}=={version}"]).returncode:
            print(f"{name} {version}: no wheel for this Python", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
