"""`crispseg bases`: a table and JSON, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from crispseg.cli import main
from crispseg.models.bases import BASES
from crispseg.models.bases.listing import list_bases


def test_every_base_has_its_facts():
    for name, info in BASES.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert info.stride in (1, 4, 8, 16)
        assert info.upsample in ("nearest", "bilinear", "bilinear_corners")
        if name != "small":
            assert min(info.parameters, info.macs) > 1e6
            assert info.paper
            assert info.code.startswith("github.com/")
            assert info.checkpoint
        for pattern in info.droppable:
            re.compile(pattern)
        for figure in info.figures:
            assert 70 < figure.miou < 85
            assert all(1 < fps < 1000 for _, fps in figure.fps)
            assert figure.size is None or re.fullmatch(r"\d+x\d+", figure.size)


def test_json(capsys):
    assert main(["bases", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "bases"
    rows = {row["name"]: row for row in report["bases"]}
    assert set(rows) == set(BASES)
    assert rows["sfnet-dfv2"]["gmac"] == 79.969189888
    assert rows["sanet"]["figures"][-1]["fps"]["Jetson AGX Xavier 32 GB"] == 26.8
    assert rows["small"]["parameters"] is None
    assert set(report["definitions"]) <= set(rows["sanet"])


def test_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["bases"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in BASES)
    assert "80.4 at 1024x2048; 26 on GTX 1080 Ti" in text
    assert "mean_iu (a numpy scalar)" in text


def test_listing_needs_no_torch():
    code = (
        "import sys; from crispseg.models.bases.listing import list_bases; list_bases(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert len(list_bases()["bases"]) == len(BASES)
