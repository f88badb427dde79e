"""``python -m crispseg``."""

from crispseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
