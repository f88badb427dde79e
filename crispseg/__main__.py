"""``crispseg`` and ``python -m crispseg``."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Runs the command line; Ctrl-C while it is still being imported is no reason for a traceback."""
    _open_streams()
    try:
        from crispseg.cli import main as run
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click", "numpy"):
            raise
        text = f"error: the command line needs typer, rich and numpy, found no {error.name}"
        print(f"{text}; pip install typer rich numpy", file=sys.stderr)
        return 2
    return run()


def _open_streams() -> None:
    """Put the null device where stdin, stdout or stderr is closed, as services start programs.

    Else the next file that is opened would take their place, and get what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (open until the end)


if __name__ == "__main__":
    sys.exit(main())
