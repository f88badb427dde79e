"""Everything that needs a GPU in one command: build, checks, benchmark, one JSON. ``make gpu``.

    python benchmarks/gpu/run.py [--only checks,refiner] [--minutes 9] [--json FILE]
    CRISPSEG_LIBCUDA=.../libcuda_emulated.so python benchmarks/gpu/run.py --dry-run

Every section is a process of its own with a time limit: one that fails, crashes or hangs costs the others nothing. The
result is benchmarks/gpu/results/<device>.json. With an emulated driver nothing is written there: the dry run shows
that the script works, its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
sys.path = [entry for entry in sys.path if entry != str(HERE)]  # its modules are gpu.*, not top-level names

from gpu.settings import (  # noqa: E402
    EMULATED,
    REFINER,
    REFINER_INT8,
    RESULTS,
    ROOT,
    Settings,
    environment,
    int8_name,
    load_settings,
    tiny,
)

# section -> (module, most seconds). The order is that of the value of what they find.
SECTIONS: Dict[str, Tuple[str, float]] = {
    "device": ("device", 60),
    "build": ("sections_build", 200),
    "prepare": ("sections_build", 150),
    "checks": ("checks", 120),
    "refiner": ("refiner", 120),
    "layers": ("layers", 90),
    "rivals": ("rivals", 90),
    "pipeline": ("pipeline", 90),
    "tests": ("sections_build", 150),
    "sanitizer": ("sections_build", 120),
    "plugin": ("sections_build", 60),
}
_MARK = "@@result "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny sizes, no times worth keeping: for emulated drivers"
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="end after this time; sections left over are skipped"
    )
    parser.add_argument("--only", default="", help="these sections (after device, build and prepare), comma between")
    parser.add_argument("--work", type=Path, help="folder for builds and intermediate files; default: a temporary one")
    parser.add_argument("--json", type=Path, help="also write the result there")
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="only write the refiner and its int8 form (torch, onnx; no GPU)"
    )
    parser.add_argument("--refiner", type=Path, metavar="FILE", help="refiner that --export wrote on another machine")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        return child(options.section, options.work)
    if options.refiner and not options.refiner.is_file():
        parser.error("--refiner %s: expected a file, found none" % options.refiner)
    with tempfile.TemporaryDirectory(prefix="crispseg-gpu-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        settings = tiny(str(work)) if options.dry_run else Settings(str(work))
        settings.save()
        if options.export:
            from gpu.sections_build import export

            low = (settings.classes, -(-settings.height // settings.stride), -(-settings.width // settings.stride))
            export(settings, low, options.export)
            print("wrote %s and %s" % (options.export, int8_name(options.export.name)))
            return 0
        given = options.refiner.resolve() if options.refiner else None
        for name, source in ((REFINER, given), (REFINER_INT8, given and given.with_name(int8_name(given.name)))):
            link = work / name  # never one of an earlier run with other settings
            if link.is_symlink() or link.exists():
                link.unlink()
            if source and source.is_file():
                link.symlink_to(source)
        return parent(settings, options)


def parent(settings: Settings, options: argparse.Namespace) -> int:
    """Runs the sections, prints a line each, writes the report."""
    end = time.monotonic() + 60 * options.minutes
    only = {name.strip() for name in options.only.split(",") if name.strip()}
    unknown = only - set(SECTIONS)
    if unknown:
        print(
            "--only: expected some of %s, found %s" % (", ".join(SECTIONS), ", ".join(sorted(unknown))), file=sys.stderr
        )
        return 2
    report: Dict[str, Any] = {"schema": 1, "kind": "gpu", "dry_run": settings.dry_run, "sections": {}}
    for name in SECTIONS:
        if only and name not in only | {"device", "build", "prepare"}:
            continue
        left = end - time.monotonic()
        if left < 5:
            outcome: Dict[str, Any] = {"status": "skipped", "why": "no time left of --minutes %g" % options.minutes}
        else:
            outcome = run_section(name, settings, min(SECTIONS[name][1], left))
        report["sections"][name] = outcome
        print(
            "%-10s %-8s %6.1f s  %s" % (name, outcome["status"], outcome.get("seconds", 0), line_of(outcome)),
            flush=True,
        )
        if name == "device" and outcome["status"] != "ok":
            missing = "make gpu needs an NVIDIA GPU: "
            if outcome["status"] == "failed":
                missing = "make gpu cannot run (it wants a Python with numpy: PYTHON=.venv/bin/python make gpu): "
            print(missing + outcome.get("why", ""), file=sys.stderr)
            return 2
    device = (report["sections"]["device"].get("result") or {}).get("device") or {}
    report["device"] = device
    report["commit"] = commit()
    report["emulated"] = EMULATED in str(device.get("name", "")).lower() or bool(os.environ.get("CRISPSEG_LIBCUDA"))
    from gpu import summary

    report["targets"] = summary.targets(report["sections"], real=not (report["emulated"] or settings.dry_run))
    for row in report["targets"]:
        print("  %s" % summary.text(row))
    write(report, device, settings, options.json)
    failed = [name for name, outcome in report["sections"].items() if outcome["status"] == "failed"]
    print("failed: " + ", ".join(failed) if failed else "every section ran or was skipped with a reason")
    return 1 if failed else 0


def write(report: Dict[str, Any], device: Dict[str, Any], settings: Settings, extra: Optional[Path]) -> None:
    """The result under the device's name, unless it comes from an emulated driver; and where --json says."""
    text = json.dumps(report, indent=1) + "\n"
    targets: List[Path] = [extra] if extra else []
    if device and not report["emulated"] and not settings.dry_run:
        slug = re.sub(r"[^a-z0-9]+", "-", str(device.get("name", "gpu")).lower()).strip("-")
        targets.append(RESULTS / (slug + ".json"))
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(text)
        os.replace(str(partial), str(target))
        print("wrote %s" % target)
    if report["emulated"]:
        print("emulated driver: the times mean nothing, nothing was written to %s" % RESULTS.relative_to(ROOT))


def run_section(name: str, settings: Settings, seconds: float) -> Dict[str, Any]:
    """One section in its own process: {"status": ok | failed | skipped, "seconds", "result" or "why"}."""
    start = time.monotonic()
    words = [sys.executable, str(HERE / "run.py"), "--section", name, "--work", settings.work]
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=seconds, check=False,
            env=environment(settings), cwd=str(ROOT),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {
            "status": "failed",
            "why": "not done in %.0f s" % seconds,
            "seconds": round(time.monotonic() - start, 1),
        }
    outcome: Dict[str, Any] = {"status": "failed", "why": "exit %d" % done.returncode}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith(_MARK):
            outcome = json.loads(line[len(_MARK) :])
    if outcome["status"] == "failed":
        outcome["stderr"] = done.stderr.decode("utf-8", "replace")[-2000:]
    outcome["seconds"] = round(time.monotonic() - start, 1)
    return outcome


def child(name: str, work: Path) -> int:
    """Runs one section here and prints its outcome; a module's ``run_<section>`` returns the result or raises Skip."""
    from gpu.skip import Skip

    try:
        module = importlib.import_module("gpu." + SECTIONS[name][0])
        outcome = {"status": "ok", "result": getattr(module, "run_" + name)(load_settings(work))}
    except Skip as reason:
        outcome = {"status": "skipped", "why": str(reason)}
    except BaseException as error:  # a section's failure is a result like another
        traceback.print_exc()
        outcome = {"status": "failed", "why": "%s: %s" % (type(error).__name__, " ".join(str(error).split())[:1500])}
    if isinstance(outcome.get("result"), dict) and outcome["result"].get("failed"):
        outcome["status"] = "failed"
        outcome["why"] = "; ".join("%s: %s" % item for item in outcome["result"]["failed"].items())[:1500]
    sys.stdout.flush()
    print("\n" + _MARK + json.dumps(outcome), flush=True)
    os._exit(0)  # a broken CUDA context must not turn a written result into a crash at exit


def line_of(outcome: Dict[str, Any]) -> str:
    """What a section has to say in one line."""
    if outcome["status"] != "ok":
        return str(outcome.get("why", ""))[:200]
    result = outcome.get("result")
    return str(result.get("line", "")) if isinstance(result, dict) else ""


def commit() -> Optional[str]:
    """Commit of this tree: $CRISPSEG_COMMIT where there is no git."""
    from crispseg.environment import commit as found

    return os.environ.get("CRISPSEG_COMMIT") or found()


if __name__ == "__main__":
    sys.exit(main())
