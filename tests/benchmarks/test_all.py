"""``make bench``: every script is run by it, named in the docs, or imported by one that is."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


def test_no_benchmark_is_forgotten():
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py") if path.stem != "all"}
    listed = runpy.run_path(str(FOLDER / "all.py"))["BENCHMARKS"]
    assert set(listed) <= set(scripts)
    docs = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    imported = {
        name
        for text in scripts.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    named = {name for name in scripts if f"{name}.py" in docs}
    assert set(scripts) - set(listed) - named - imported == set()
