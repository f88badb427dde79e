"""The CUDA tests on the kernels as NVRTC compiles them, interpreted: ``python tests/emulation/run_ptx.py``.

For each compute capability: the tests of the kernels, of the engine and of the pipeline, a process for each file, with
CRISPSEG_EMULATION_IMAGE=ptx. Ends with 1 when a test fails, or when none has run, with 2 without NVRTC.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Dict, List, Sequence
from xml.etree import ElementTree

TESTS = Path(__file__).resolve().parents[1]
# Under tests/. What runs no kernel (finding NVRTC) is left to the ordinary runs.
FILES = (
    "plugins/test_cuda_*.py",
    "plugins/test_emulation*.py",
    "plugins/test_ptx_[bmp]*.py",
    "plugins/test_tensorrt_harness.py",
    "engines/test_cuda_[!n]*.py",
    "runtime/test_gpu_*.py",
    "runtime/test_refiner_engine.py",
)
CAPABILITIES = (72, 75, 80, 87, 90)


@dataclass
class Outcome:
    """Counts of one run of pytest, or the sum of several; ``failures``: test -> the end of its message."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: Dict[str, str] = field(default_factory=dict)
    reasons: Dict[str, int] = field(default_factory=dict)  # of skipped tests
    times: Dict[str, float] = field(default_factory=dict)  # seconds a test

    def add(self, other: Outcome) -> None:
        """Counts another run in."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.seconds += other.seconds
        self.failures.update(other.failures)
        self.times.update(other.times)
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count


def environment(capability: int, **more: str) -> Dict[str, str]:
    """Variables of a process whose emulated device has this compute capability and takes PTX."""
    path = os.pathsep.join(p for p in (str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")) if p)
    own = {"CRISPSEG_EMULATION_IMAGE": "ptx", "CRISPSEG_EMULATION_CAPABILITY": str(capability), "PYTHONPATH": path}
    return {**os.environ, **own, **more}


def run(capability: int, words: Sequence[str], limit: float = 3600.0, **more: str) -> Outcome:
    """One process of pytest with these arguments.

    A process that ends with anything but "all passed" or "some failed" (a crash, no test found, the time limit) counts
    as a failure named by its first argument.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crispseg-ptx-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words]
        try:
            done = subprocess.run(
                [*command, "--junitxml", str(report)], env=environment(capability, **more), cwd=str(TESTS.parent),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit, check=False,
            )  # fmt: skip
            code, text = done.returncode, done.stdout.decode("utf-8", "replace")
        except subprocess.TimeoutExpired as error:
            code, text = -1, "not done in %.0f s\n%s" % (limit, (error.stdout or b"").decode("utf-8", "replace"))
        found = read(report) if report.is_file() else Outcome()
    if code not in (0, 1) or (code == 1 and not found.failed):
        found.failed += 1
        found.failures["pytest " + words[0]] = "exit %d: %s" % (code, text[-3000:])
    found.seconds = time.monotonic() - start
    return found


def read(report: Path) -> Outcome:
    """Counts of a JUnit report; a test that is skipped in part counts as passed."""
    outcome = Outcome()
    for case in ElementTree.parse(str(report)).iter("testcase"):
        name = "%s::%s" % (case.get("classname"), case.get("name"))
        outcome.times[name] = float(case.get("time") or 0)
        wrong = [child for child in case if child.tag in ("failure", "error")]
        skips = [child for child in case if child.tag == "skipped"]
        if wrong:
            outcome.failed += 1
            outcome.failures[name] = (wrong[0].get("message") or "")[:1000] + "\n" + (wrong[0].text or "")[-3000:]
        elif skips:
            outcome.skipped += 1
            reason = skips[0].get("message") or ""
            outcome.reasons[reason] = outcome.reasons.get(reason, 0) + 1
        else:
            outcome.passed += 1
    return outcome


def files() -> List[Path]:
    """The test files that run kernels."""
    return [path for pattern in FILES for path in sorted(TESTS.glob(pattern))]


def no_compiler(capability: int) -> str:
    """Why nothing can be compiled for this compute capability, or ""."""
    if str(TESTS.parent) not in sys.path:
        sys.path.append(str(TESTS.parent))
    from crispseg.engines import nvrtc
    from crispseg.errors import EnvironmentMismatch

    try:
        nvrtc.find_compiler(capability)
    except EnvironmentMismatch as error:
        return str(error)
    return ""


def summary(outcome: Outcome) -> str:
    """Counts and seconds in words."""
    counts = (outcome.passed, outcome.failed, outcome.skipped, outcome.seconds)
    return "%d passed, %d failed, %d skipped, %.0f s" % counts


def reason(text: str) -> str:
    """The first line of a failure."""
    return (text.strip().splitlines() or [""])[0][:400]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", default=",".join(map(str, CAPABILITIES)), help="these, comma between")
    parser.add_argument("--json", type=Path, help="write counts, failures and times there")
    parser.add_argument("--minutes", type=float, default=60.0, help="most time for one file")
    parser.add_argument("--order", default="", help="forward, reverse, or the seed of a shuffle of blocks and threads")
    parser.add_argument("--slow", action="store_true", help="also the tests that are marked slow")
    parser.add_argument("words", nargs="*", metavar="-- arguments of pytest", help="in place of the test files")
    options = parser.parse_args()
    more = {"CRISPSEG_EMULATION_ORDER": options.order} if options.order else {}
    kinds = "not gpu" if options.slow else "not gpu and not slow"
    results: Dict[str, Outcome] = {}
    capabilities = [int(word) for word in options.capability.split(",")]
    missing = next(filter(None, map(no_compiler, capabilities)), "")
    if missing:
        print(missing, file=sys.stderr)
        return 2
    for capability in capabilities:
        whole = results[str(capability)] = Outcome()
        for words in [options.words] if options.words else [[str(path), "-m", kinds] for path in files()]:
            part = run(capability, words, 60 * options.minutes, **more)
            whole.add(part)
            if not options.words:
                print("  %s: %s" % (Path(words[0]).name, summary(part)), file=sys.stderr, flush=True)
            for name, text in part.failures.items():
                print("FAILED %d %s: %s" % (capability, name, reason(text)), flush=True)
        print("capability %d: %s" % (capability, summary(whole)), flush=True)
    if options.json:
        options.json.write_text(json.dumps({name: asdict(whole) for name, whole in results.items()}, indent=1) + "\n")
    return 0 if all(whole.passed and not whole.failed for whole in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
