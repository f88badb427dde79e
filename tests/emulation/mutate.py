"""Removes each barrier of the kernels in turn and runs their tests: ``python tests/emulation/mutate.py``.

One line a mutant: found (by a message, or by other numbers) or not. What is not found is a barrier that no test needs,
or that the kernels do not need. Slow: every mutant is compiled. ``--image host`` runs the mutants made by g++ instead.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emulation import run_ptx

KERNELS = run_ptx.TESTS.parent / "crispseg" / "plugins" / "cuda" / "kernels"
BARRIER = re.compile(r"^ +(?:if \([^()]*\) )?(cs_sync\(\);|__syncwarp\(\);)", re.MULTILINE)
PLUGINS = run_ptx.TESTS / "plugins"
# Kernel file -> compute capability, test files, choice among their tests.
TESTS: Dict[str, Tuple[int, Tuple[str, ...], str]] = {
    "conv_mma.cuh": (87, ("test_cuda_conv.py",), "mma"),
    "conv_wgmma.cuh": (90, ("test_cuda_wgmma.py",), ""),
    "conv_wmma.cuh": (72, ("test_cuda_conv.py",), "wmma"),
    "conv_fp32.cuh": (72, ("test_cuda_conv.py",), "fp32"),
    "conv_common.cuh": (72, ("test_cuda_conv.py",), ""),
    "base.cuh": (72, ("test_cuda_select.py", "test_cuda_maps.py"), ""),
    "compact.cuh": (72, ("test_cuda_select.py",), ""),
    "logits_at.cuh": (72, ("test_cuda_select.py",), ""),
    "select.cuh": (72, ("test_cuda_select.py",), ""),
    "down.cuh": (72, ("test_cuda_maps.py",), ""),
    "grid.cuh": (72, ("test_cuda_maps.py",), ""),
    "overlay.cuh": (72, ("test_cuda_frame.py",), ""),
}
REST = (72, ("test_cuda_rows.py",), "")


class Mutant(NamedTuple):
    """A kernel file without one of its barriers."""

    file: str
    line: int
    text: str  # of the file
    barrier: str


def mutants(names: List[str]) -> Iterator[Mutant]:
    """One for each barrier of these files; empty: of all."""
    for path in sorted(KERNELS.glob("*.cuh")):
        text = path.read_text("utf-8")
        if names and path.name not in names:
            continue
        for match in BARRIER.finditer(text):
            if path.name == "mma.cuh":  # host versions
                continue
            start, end = match.span(1)
            yield Mutant(path.name, text.count("\n", 0, start) + 1, text[:start] + ";" + text[end:], match.group(1))


def run(mutant: Mutant, folder: Path, image: str) -> str:
    """How the tests see a mutant: "" = they pass, else the first failure."""
    (folder / mutant.file).write_text(mutant.text, "utf-8")
    capability, files, chosen = TESTS.get(mutant.file, REST)
    words = [str(PLUGINS / name) for name in files] + ["-x", "-m", "not gpu and not slow"]
    words += ["-k", f"({chosen}) and not of_the_device" if chosen else "not of_the_device"]
    more = {"CRISPSEG_EMULATION_KERNELS": str(folder), "CRISPSEG_EMULATION_IMAGE": image}
    outcome = run_ptx.run(capability, words, 900, **more)
    shutil.copyfile(str(KERNELS / mutant.file), str(folder / mutant.file))
    if outcome.failures:
        return next(run_ptx.reason(text) for text in outcome.failures.values()) or "failed"
    return "" if outcome.passed else "no test ran"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", choices=("ptx", "host"), default="ptx")
    parser.add_argument("--json", type=Path)
    parser.add_argument("files", nargs="*", help="these kernel files, such as conv_mma.cuh")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="crispseg-mutants-") as temporary:
        folder = Path(temporary) / "kernels"
        shutil.copytree(str(KERNELS), str(folder))
        for mutant in mutants(options.files):
            found = run(mutant, folder, options.image)
            rows.append({"file": mutant.file, "line": mutant.line, "barrier": mutant.barrier, "found": found})
            print("%-18s %4d %-14s %s" % (*mutant[:2], mutant.barrier, found or "NOT FOUND"), flush=True)
    print("%d of %d found" % (sum(bool(row["found"]) for row in rows), len(rows)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
