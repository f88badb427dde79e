"""How many threads an engine takes: what was asked for, else what affinity and control group leave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from crispseg import environment
from crispseg.engines.spec import EngineSpec


def group(monkeypatch, folder, text, cpus):
    """A fake control group below ``folder`` and an affinity mask of so many CPUs."""
    real = environment._read
    monkeypatch.setattr(environment, "_CGROUP", folder)
    monkeypatch.setattr(environment, "_read", lambda p: text if str(p) == "/proc/self/cgroup" else real(p))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)


@pytest.mark.parametrize(
    ("quota", "period", "cpus", "threads"),
    [("250000", "100000", 8, 2), ("50000", "100000", 8, 1), ("-1", "100000", 6, 6), ("800000", "100000", 3, 3)],
)
def test_version_one_quota_and_affinity(tmp_path, monkeypatch, quota, period, cpus, threads):
    folder = tmp_path / "cpu" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota + "\n")
    (folder / "cpu.cfs_period_us").write_text(period + "\n")
    group(monkeypatch, tmp_path, "5:memory:/job\n4:cpu,cpuacct:/job\n", cpus)
    assert EngineSpec().thread_count == threads
    assert EngineSpec(threads=7).thread_count == 7  # named: taken as it is


@pytest.mark.parametrize(
    ("parent", "child", "threads"), [("300000 100000", "max 100000", 3), ("max 100000", "150000 100000", 1)]
)
def test_version_two_quota_of_any_level(tmp_path, monkeypatch, parent, child, threads):
    folder = tmp_path / "slice" / "job"
    folder.mkdir(parents=True)
    (folder.parent / "cpu.max").write_text(parent + "\n")
    (folder / "cpu.max").write_text(child + "\n")
    group(monkeypatch, tmp_path, "0::/slice/job", 16)
    assert EngineSpec().thread_count == threads


def test_broken_files_are_no_limit(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("one two three")
    group(monkeypatch, tmp_path, "0::/", 4)
    assert EngineSpec().thread_count == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_a_real_affinity_mask():
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}}); from crispseg.engines.spec import EngineSpec; " \
           "print(EngineSpec().thread_count)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
