"""Lets the tests of this folder import the op references of tests/plugins by name."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "plugins", Path(__file__).parents[1] / "export"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
