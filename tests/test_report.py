from __future__ import annotations

import io
import json
import os
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from crispseg import environment
from crispseg.errors import InputError
from crispseg.report import (
    DEFINITIONS,
    format_value,
    new_report,
    render_html,
    render_table,
    summarise,
    to_json,
    write_json,
    write_text,
)


def sample() -> dict:
    accuracy = {"miou": 41.5, "boundary_iou": 30.25, "per_class": {"sky": 90.0, "<b>[red]": None}}
    return new_report(
        "latency",
        bundle={"name": "a<script>b", "path": "x"},
        stages={"base": summarise([1, 2, 3]), "refine:conv": summarise([])},
        base=accuracy,
        refined={**accuracy, "miou": 50.0},
        density=12.345,
        checks=[{"name": "x", "ok": True}, {"name": "[y]", "ok": False}],
        environment={"cpu": "Some CPU"},
        warnings=["careful [bold]"],
    )


def test_percentiles_interpolate():
    assert summarise([1, 2, 3, 4]) == {"p50": 2.5, "p90": 3.7, "p99": 3.97, "max": 4.0, "mean": 2.5}
    assert set(summarise([]).values()) == {None}


def test_definitions_of_the_terms_in_the_report_only():
    report = sample()
    assert {"p50", "conv", "miou", "boundary_iou", "density", "refined"} <= set(report["definitions"])
    assert "speedup" not in report["definitions"]
    assert all(report["definitions"][term] == DEFINITIONS[term] for term in report["definitions"])


def test_throughput_of_a_run_is_that_of_the_whole_run():
    """Decoding and encoding count there; crispseg latency times the networks alone."""
    told = {kind: new_report(kind, throughput_fps=1.0, seconds=2.0)["definitions"] for kind in ("run", "latency")}
    assert "seconds" in told["run"]["throughput_fps"]
    assert "seconds" in told["run"]
    assert told["latency"] == {"throughput_fps": DEFINITIONS["throughput_fps"]}


def test_heads_fold_between_words():
    hop = {"network": "base", "hop": "recorded at export -> onnxruntime", "passed": True, "tensors": 1, "error": 0.5}
    rows = [{**hop, "agreement": 100.0, "sites_different": 0, "first_difference": "some/layer/Conv"}]
    stream = io.StringIO()
    Console(file=stream, width=80).print(render_table({"kind": "verify", "hops": rows}))
    words = stream.getvalue().split()
    assert {"agreement", "different", "difference", "0.50"} <= set(words)


def test_every_report_says_where_it_was_made():
    """Also one whose command gives no environment; and names in it are no terms of the report."""
    report = new_report("scenes", count=3)
    assert {"commit", "crispseg", "packages", "date"} <= set(report["environment"])
    assert new_report("scenes", environment=None)["environment"] is None, "given, so not looked up"
    assert "cpu" not in new_report("eval", density=1.0, environment={"cpu": "Some CPU"})["definitions"]
    assert "cpu" in new_report("latency", stages={"cpu": summarise([1])}, environment={})["definitions"]


def test_the_command_that_makes_a_report_again(monkeypatch):
    """As typed, ready for a shell; nothing of other programs."""
    given = ["run", "my bundle", "rtsp://me:s3cret@cam/1", "-o", "out", "rtspsrc user-pw=s3cret"]
    wanted = "crispseg run 'my bundle' 'rtsp://me:***@cam/1' -o out 'rtspsrc user-pw=***'"
    for program in ("/venv/bin/crispseg", "C:/venv/crispseg.exe", "/src/crispseg/__main__.py"):
        monkeypatch.setattr(sys, "argv", [program, *given])
        assert environment.environment()["command"] == wanted
    for program in ("/usr/bin/pytest", "/x/__main__.py", ""):
        monkeypatch.setattr(sys, "argv", [program, *given])
        assert environment.environment()["command"] is None


def test_strict_json():
    values = {"a": np.float32(0.5), "b": np.int64(3), "c": float("nan"), "d": np.inf, "e": np.arange(2), "f": (1, None)}
    text = to_json({**values, "g": np.bool_(True), "h": {1: {2}}})
    assert json.loads(text) == {
        "a": 0.5, "b": 3, "c": None, "d": None, "e": [0, 1], "f": [1, None], "g": True, "h": {"1": [2]}
    }  # fmt: skip


def ctrl_c(*unused):
    raise KeyboardInterrupt


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "new" / "r.json"
    write_json(target, sample())
    assert json.loads(target.read_text())["schema"] == 1
    assert [p.name for p in target.parent.iterdir()] == ["r.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/r\.json: cannot write"):
        write_json(tmp_path / "file" / "r.json", {})
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_json(tmp_path / "folder.json", {})
    monkeypatch.setattr(os, "replace", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "r.json", {})
    assert not list(tmp_path.glob("*.partial"))


def test_table_shows_texts_as_they_are():
    console = Console(width=120, file=None, record=True)
    with console.capture() as captured:
        console.print(render_table(sample(), details=True))
    text = captured.get()
    for part in ("<b>[red]", "careful [bold]", "[y]", "Some CPU", "41.50", "12.3", "density, %"):
        assert part in text


def test_numbers_of_a_wide_table_stay_whole_in_a_narrow_terminal():
    """As `crispseg latency --layers` prints them: twelve columns."""
    columns = ("name", "kind", "level", "rows", "cin", "cout", "algorithm", "ms", "gflop", "shortcut", "a_b", "share")
    row = ("dec0.0.conv1", "submanifold", 0, 28793, 128, 128, "winograd4", 12.34, 0.27, 0, 93.6, 10.47)
    console = Console(width=80, file=None)
    with console.capture() as captured:
        console.print(render_table(new_report("x", layers=[dict(zip(columns, row))], environment={})))
    text = captured.get()
    assert all(f" {number} " in text for number in ("28793", "128", "12.34", "0.27", "93.60", "10.47"))


def test_stages_that_hold_others_are_pale():
    """The bars of a chart do not add up otherwise."""
    stages = {"base": summarise([2]), "refine": summarise([3]), "total": summarise([5])}
    text = render_html(new_report("latency", stages=stages, environment={}))
    assert text.count('opacity="0.4"') == 2
    assert "Paler: refine, total," in text
    assert "Paler" not in render_html(new_report("latency", stages={"base": summarise([2])}, environment={}))


class Page(HTMLParser):
    """Collects tags and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)


def test_page_is_whole_and_needs_nothing_else():
    page, text = Page(), render_html(sample())
    page.feed(text)
    assert page.open == []
    assert page.addresses == []
    assert "script" not in page.tags
    assert {"svg", "table", "dl"} <= set(page.tags)
    assert "Some CPU" in text
    assert "url(" not in text


def test_format_value():
    assert [format_value(v) for v in (None, True, 3, 0.5, 123.45, 12345.6, 8.2e-8, float("nan"))] == [
        "-", "True", "3", "0.50", "123.5", "12346", "8.2e-08", "-"
    ]  # fmt: skip
    assert format_value({"Conv": 2, "Add": 1.0}) == "Conv 2, Add 1.00"


def test_file_names_that_are_no_text(tmp_path):
    report = {"input": "a\udcffb", "name": "Straße"}
    write_json(tmp_path / "r.json", report)
    assert json.loads((tmp_path / "r.json").read_text(encoding="ascii")) == report
    write_text(tmp_path / "r.html", report["input"])
    assert (tmp_path / "r.html").read_text() == "a\\udcffb"


def test_environment_is_json_and_imports_nothing_heavy():
    facts = environment.environment(3, backend="native")
    json.loads(to_json(facts))
    assert (facts["threads"], facts["backend"]) == (3, "native")
    assert 1 <= facts["cpus_usable"] <= facts["cpus"]
    assert environment.environment(0)["threads"] == facts["cpus_usable"]
    assert facts["memory_mib"] > environment.peak_memory_mib() > 1


def test_quota_of_the_control_group(tmp_path, monkeypatch):
    child = tmp_path / "a" / "b"
    child.mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (child / "cpu.max").write_text("max 100000\n")
    (child / "memory.max").write_text(f"{2**30}\n")
    monkeypatch.setattr(environment, "_CGROUP", tmp_path)
    real = environment._read
    monkeypatch.setattr(environment, "_read", lambda p: "0::/a/b" if str(p) == "/proc/self/cgroup" else real(p))
    assert environment.cpu_quota() == 1.5
    assert environment.usable_cpus() == 1
    assert environment.memory_limit_mib() == 1024
    (child / "cpu.max").write_text("50000 100000\n")
    assert environment.usable_cpus() == 1
