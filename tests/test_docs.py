"""README and docs name commands, options, files and pages that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from crispseg import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("benchmarks", "crispseg", "demo", "docker", "docs", "tests", "tools")
MADE = ("benchmarks/out/", "demo/out/", "demo/bundle/engines")  # written by commands
SHARED = ROOT / "benchmarks" / "refiner_native_vs_ort.py"  # has the parser that some of them start from
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(scope="module")
def commands():
    """name -> options."""
    found = typer.main.get_command(cli.app).commands
    return {name: {word for p in item.params for word in (*p.opts, *p.secondary_opts)} for name, item in found.items()}


def lines_of_commands(text):
    """(command, rest of its line) of `crispseg COMMAND ...`, in code blocks and in running text."""
    joined = text.replace("\\\n", " ")
    for line in re.findall(r"crispseg ([a-z][a-z-]*(?: [^`\n#;|]*)?)", joined):
        for part in line.split("crispseg "):
            name, _, rest = part.strip().partition(" ")
            yield name, rest


@pages
def test_commands_and_options(page, commands):
    for name, rest in lines_of_commands(page.read_text()):
        options = re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", rest)
        if options:
            assert name in commands, f"crispseg {name} {rest}"
            assert set(options) <= commands[name] | {"--help"}, f"crispseg {name} {rest}"


def test_every_command_is_in_the_readme(commands):
    text = PAGES[0].read_text()
    assert [name for name in commands if f"crispseg {name}" not in text] == []


@pages
def test_paths(page):
    for path in re.findall(r"(?<![\w./$-])((?:%s)/[\w./-]*\w)" % "|".join(FOLDERS), page.read_text()):
        if not path.startswith(MADE):
            assert (ROOT / path).exists(), path


@pages
def test_links(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pages
def test_scripts_have_the_options(page):
    joined = page.read_text().replace("\\\n", " ")
    for script, rest in re.findall(r"((?:benchmarks|tools|tests)/[\w/]+\.py)((?: [^`\n#;|]*)?)", joined):
        texts = (ROOT / script).read_text() + SHARED.read_text()
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest):
            assert f'"{option}"' in texts, f"{script} {option}"
