"""Imports point down only, and the device side stays importable on Python 3.8 with numpy alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "crispseg"
FILES = sorted(ROOT.rglob("*.py"))
SHARED = {
    "",
    "errors",
    "classes",
    "report",
    "report_html",
    "bundle",
    "bundle_calibration",
    "bundle_fields",
    "bundle_masks",
    "bundle_schema",
    "environment",
    "files",
}
# room -> rooms that it may import beside itself and the shared modules
ALLOWED = {
    "scenes": set(),
    "sparse": set(),
    "plugins": set(),
    "models": {"sparse"},
    "engines": {"plugins"},
    "export": {"models", "plugins", "engines"},
    "calibration": {"export", "plugins"},  # never an engine: the commands hand it frames and callables
    "fit": {"models", "sparse", "scenes"},
    "runtime": {"engines", "plugins", "scenes"},
    # The commands call every room, inside their functions.
    "cli": {"cli_build", "cli_calibrate", "cli_eval_masks", "cli_fit", "cli_make", "cli_masks", "cli_output"},
    "cli_build": {"cli", "cli_output"},
    "cli_calibrate": {"cli", "cli_calibrate_bundle", "cli_make", "cli_output"},
    "cli_calibrate_bundle": set(),
    "cli_calibrate_fp16": {"cli_calibrate_bundle"},
    "cli_calibrate_scan": {"cli_calibrate_bundle"},
    "cli_eval_masks": {"cli", "cli_output"},
    "cli_fit": {"cli", "cli_make"},
    "cli_make": {"cli", "cli_foreign", "cli_masks", "cli_output"},
    "cli_masks": {"cli", "cli_output"},
    "cli_foreign": set(),
    "cli_output": set(),
    "cli_unused": set(),
    "__main__": {"cli"},
    "environment": {"plugins"},  # which instruction set the native library takes
}
HOST_ONLY = ("models", "sparse", "export", "fit", "calibration")
DEVICE_FOLDER = "export/passes/"  # of a host room, but `crispseg build` converts on the device
# folder -> folders of the same room that it must not import
APART = {
    "models/bases": {"models/refiners"},
    "runtime/crm": {"runtime/segrefiner", "runtime/pipeline"},
    "runtime/segrefiner": {"runtime/crm", "runtime/pipeline"},
    "runtime/mask_": {"runtime/pipeline"},
}
HEAVY = {"torch", "onnx", "onnxruntime", "av", "cv2", "PIL", "tensorrt", "onnxscript"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def device_side(path: Path) -> bool:
    return room_of(path) not in HOST_ONLY or path.relative_to(ROOT).as_posix().startswith(DEVICE_FOLDER)


def imports(path: Path, everywhere: bool = True) -> set:
    """Full names of what a file imports; with everywhere=False only what runs on import."""
    found = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif not everywhere and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room = room_of(path)
    lazy_caller = room.startswith("cli")
    targets = {name.split(".")[1] for name in imports(path, everywhere=not lazy_caller) if name.startswith("crispseg.")}
    modules = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()}
    beyond = (targets & modules) - SHARED - {room} - ALLOWED.get(room, set())
    assert not beyond, f"{path.relative_to(ROOT)} must not import {sorted(beyond)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_device_side_parses_as_python_38(path):
    if device_side(path):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_device_side_never_imports_torch(path):
    names = {name.split(".")[0] for name in imports(path)}
    if device_side(path):
        assert "torch" not in names


@pytest.mark.parametrize("start", APART)
def test_neighbours_stay_apart(start):
    """Refiners may use bases, not the other way round; the mask refiners know neither each other nor the pipeline."""
    own = [path for path in FILES if path.relative_to(ROOT).as_posix().startswith(start)]
    assert own
    for path in own:
        names = {name[len("crispseg.") :].replace(".", "/") for name in imports(path) if name.startswith("crispseg.")}
        assert not [name for name in names if name.startswith(tuple(APART[start]))], path.relative_to(ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_length(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines; one idea a module"


def modules_after(code: str) -> set:
    program = code + "\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    ["import crispseg, crispseg.bundle, crispseg.report, crispseg.environment", "import crispseg.cli",
     "import crispseg.runtime.accuracy, crispseg.runtime.latency, crispseg.runtime.doctor, crispseg.runtime.describe"],
    ids=["package", "cli", "runtime"],
)  # fmt: skip
def test_nothing_heavy_on_import(code):
    assert not modules_after(code) & HEAVY


def test_help_imports_no_numpy():
    assert "numpy" not in modules_after("from crispseg.cli import main; assert main(['--help']) == 0; print()")
