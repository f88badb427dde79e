"""``make bench``: what docs/benchmarks.md reports, one after the other; each writes benchmarks/out/NAME.json."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# name -> arguments; in the order of what a reader wants to know first.
BENCHMARKS = (
    *("front_end", "refiner_native_vs_ort", "hrnet_sized", "bases_ort_vs_eager", "native", "density_sweep"),
    *("native_ops", "row_ops", "int8_base", "int8_refiner", "crm", "segrefiner", "footprint"),
)


def main() -> int:
    failed = []
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        target = HERE / "out" / f"{name}.json"
        target.parent.mkdir(exist_ok=True)
        code = subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--json", str(target)], check=False).returncode
        print(f"   {time.monotonic() - start:.0f} s, exit {code}", flush=True)
        failed += [name] if code else []
    print("failed: " + ", ".join(failed) if failed else f"results in {HERE / 'out'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
