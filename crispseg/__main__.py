"""``crispseg`` and ``python -m crispseg``."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; Ctrl-C while it is still being imported is no reason for a traceback."""
    try:
        from crispseg.cli import main as run
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
