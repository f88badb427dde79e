"""Fetch TensorRT's lean runtime and its Python module for the registry test: about 44 MB a version, no GPU needed.

    python tests/plugins/fetch_tensorrt_lean.py FOLDER [VERSION ...]

Installs tensorrt-lean-cu13-libs and -bindings into FOLDER/VERSION with pip (their licence allows use, not
redistribution: nothing of them is in this repository). Then: CRISPSEG_TRT_LEAN=FOLDER pytest tests/plugins.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VERSIONS = ("10.16.1.11", "11.4.0.106")


def main(folder: str, *versions: str) -> None:
    """Fill ``folder``; a version that is there already is left alone."""
    for version in versions or VERSIONS:
        target = Path(folder) / version
        if (target / "tensorrt_lean_bindings").is_dir() and (target / "tensorrt_lean_libs").is_dir():
            continue
        names = [f"tensorrt-lean-cu13-{part}=={version}" for part in ("libs", "bindings")]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *names]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
