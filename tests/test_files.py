from __future__ import annotations

import hashlib
import os

import pytest

from crispseg.bundle import check_target
from crispseg.classes import load_classes
from crispseg.cli_output import check_report_file
from crispseg.errors import InputError
from crispseg.files import hash_files, hash_read, partial_path, require_writable


def test_hash_of_files_is_that_of_sha256sum(tmp_path):
    """``sha256sum a b | sha256sum`` in their folder."""
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"")
    lines = (
        "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b  a\n"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n"
    )
    wanted = hashlib.sha256(lines.encode()).hexdigest()
    assert hash_files([tmp_path / "a", tmp_path / "b"]) == wanted != hash_files([tmp_path / "b", tmp_path / "a"])


def test_a_file_that_is_gone_has_no_hash(tmp_path):
    """Frames of a long run may be moved away before its report is written."""
    (tmp_path / "a").write_bytes(b"1")
    assert hash_read([tmp_path / "a"]) == hash_files([tmp_path / "a"])
    assert hash_read([tmp_path / "a", tmp_path / "b"]) is None


def test_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "a", tmp_path / "a" / "b" / "c", "relative/x"):
        require_writable(path, "output")
    assert os.listdir(str(tmp_path)) == []


def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"output .*file/x: expected .*file to be a folder, found a file; choose"):
        require_writable(tmp_path / "file" / "x", "output")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs procfs, where even root cannot write")
@pytest.mark.parametrize("check", [check_target, check_report_file], ids=["bundle", "report"])
def test_impossible_place_is_refused_before_the_work(check):
    from pathlib import Path

    with pytest.raises(InputError, match="cannot be written: .*choose another place"):
        check(Path("/proc/new/x.json"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.timeout(20)
def test_a_pipe_is_never_waited_for(tmp_path):
    """Where a report, a state or a table of classes is expected: a pipe that nobody writes to blocks its reader."""
    for name in ("r.json", "r.html"):
        os.mkfifo(str(tmp_path / name))
        with pytest.raises(InputError, match="found a pipe or device"):
            check_report_file(tmp_path / name)
    with pytest.raises(InputError, match="found a pipe or device"):
        require_writable(tmp_path / "r.json", "--scan-state")
    for place in (tmp_path / "r.json", "/dev/zero"):
        with pytest.raises(InputError, match="found a pipe or device"):
            load_classes(place)
    with pytest.raises(InputError, match="found a folder"):
        load_classes(tmp_path)


def test_partial_names_fit_where_the_final_ones_do(tmp_path):
    assert partial_path(tmp_path / "a.png") == tmp_path / "a.png.partial"
    assert len(partial_path(tmp_path / ("x" * 247)).name) == 255
    names = ["x" * 248, "y" * 255, "\u00e9" * 127]  # the last one: 254 bytes
    partial = [partial_path(tmp_path / name) for name in names]
    assert len(set(partial)) == len(names)
    for path in partial:
        path.write_bytes(b"")
