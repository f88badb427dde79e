"""Lets the tests of this folder import the small nets of tests/engines and the op references by name."""

import sys
from pathlib import Path

for folder in ("engines", "plugins", "export"):
    path = str(Path(__file__).parents[1] / folder)
    if path not in sys.path:
        sys.path.append(path)
