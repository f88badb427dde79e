"""Lets the tests of this folder import their helpers, and the op table of tests/plugins, by name."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "plugins"):
    sys.path.insert(0, str(folder))
