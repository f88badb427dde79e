"""`crispseg calibrate --scan` from the command line: real networks of toy size."""

from __future__ import annotations

import json
import xml.dom.minidom

import pytest
from small_bundle import write_pictures, write_small

from crispseg.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    write_small(folder / "bundle")
    write_small(folder / "dense", refiner=False)
    return folder, write_pictures(folder / "data", labels=True)


@pytest.fixture
def scan(data, capsys, tmp_path, monkeypatch):
    """arguments -> (exit code, JSON document, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, bundle="bundle"):
        folder, images = data
        code = main(["calibrate", str(folder / bundle), str(images), "--scan", "--threads", "1", "--json", *arguments])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return run


def test_both_networks_ranked_and_resumed(scan, tmp_path):
    page = tmp_path / "page.html"
    code, report, _ = scan("--gate", "100", "--scan-frames", "3", "--plot", "scan.svg", "--report", str(page))
    assert code == 0
    layers = [row["layer"] for row in report["layers"]]
    assert {"base:first", "base:second", "base:third", "refiner:enc", "refiner:mix"} <= set(layers)
    assert not {"base:logits", "refiner:stem", "refiner:yo"} & set(layers), "first and last of the refiner, head"
    changed = [row["changed"] for row in report["layers"]]
    assert changed == sorted(changed, reverse=True)
    assert changed[0] > 0
    assert report["proposal"] == {"passed": True, "exclude": [], "options": "", "text": "nothing has to stay float"}
    assert (report["frames"], report["resumed_measurements"]) == (3, 0)
    assert len(xml.dom.minidom.parse("scan.svg").getElementsByTagName("g")) == len(layers)
    assert "Pixels that change when this layer alone is int8" in page.read_text()
    (state,) = tmp_path.glob("scan-small-*.json")
    assert report["state"] == state.name
    code, again, _ = scan("--gate", "100", "--scan-frames", "3")
    assert again["layers"] == report["layers"]
    assert again["resumed_measurements"] == len(layers) + 1 + 2, "each alone, all together, two sets of ranges"


def test_a_tight_gate_and_the_list_that_calibrate_takes(scan, data, capsys, tmp_path):
    _, report, _ = scan("--gate", "100", "--scan-frames", "4")
    gate = str(0.75 * report["everything_in_int8"]["changed"])
    code, report, _ = scan("--gate", gate, "--scan-frames", "4")
    assert code == 0
    proposal = report["proposal"]
    assert proposal["passed"]
    assert 0 < len(proposal["exclude"]) < len(report["layers"])
    assert proposal["measured"]["changed"] <= float(gate)
    assert {row["layer"] for row in report["layers"] if row["exclude"]} == set(proposal["exclude"])
    options = [part for name in proposal["exclude"] for part in ("--exclude", name)]
    folder, images = data
    code = main(["calibrate", str(folder / "bundle"), str(images), "-o", str(tmp_path / "int8"), "--json", "--force",
                 "--threads", "1", *options])  # fmt: skip
    assert code == 0
    made = json.loads(capsys.readouterr().out)
    kept = {f"{row['network']}:{name}" for row in made["networks"] for name in _excluded(tmp_path, row["network"])}
    assert set(proposal["exclude"]) <= kept


def _excluded(tmp_path, role):
    manifest = json.loads((tmp_path / "int8" / "bundle.json").read_text())
    return manifest["calibration"]["networks"][role]["excluded"]


def test_an_interrupted_scan_says_how_to_go_on(scan, monkeypatch, tmp_path):
    from crispseg import cli_calibrate_scan

    real, calls = cli_calibrate_scan._Bench.measure, []

    def measure(self, int8):
        calls.append(int8)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, int8)

    monkeypatch.setattr(cli_calibrate_scan._Bench, "measure", measure)
    code, _, error = scan("--gate", "100", "--scan-frames", "2", "--networks", "refiner", "--scan-state", "s.json")
    assert code == 130
    assert "goes on from s.json" in error
    code, report, _ = scan("--gate", "100", "--scan-frames", "2", "--networks", "refiner", "--scan-state", "s.json")
    assert code == 0
    assert report["resumed_measurements"] == 2 + 1
    assert all(row["layer"].startswith("refiner:") for row in report["layers"])


def test_labels_blocks_and_a_bundle_without_a_refiner(scan, data):
    labels = str(data[0] / "data" / "labels")
    code, report, _ = scan("--labels", labels, "--gate", "100", "--scan-frames", "2", "--scan-blocks", bundle="dense")
    assert code == 0
    assert [set(row) for row in report["layers"]] == [
        {"rank", "layer", "changed", "miou_drop", "boundary_iou_drop", "macs", "exclude"}
    ] * 3
    assert 0 < sum(row["macs"] for row in report["layers"]) < 100, "the head is not int8"
    assert report["everything_in_int8"]["worst_class"].startswith("c")


def test_what_cannot_be_is_refused(scan, data, tmp_path):
    code, report, error = scan("-o", "out")
    assert (code, report["error"]["exit_code"]) == (2, 2)
    assert "a scan writes no bundle" in error
    (tmp_path / "other.json").write_text('{"format": 1, "key": "x", "results": {}}')
    code, _, error = scan("--scan-state", "other.json")
    assert code == 2
    assert "another bundle, other images or other options" in error
    code, _, error = scan("--plot", str(tmp_path / "other.json" / "x.svg"))
    assert code == 2
    assert "--plot" in error
    assert main(["calibrate", str(data[0] / "bundle"), str(data[1]), "--plot", "x.svg", "-o", "y"]) == 2
