"""Signals that end a program: files are finished or removed, and the exit code says which one it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from crispseg.runtime.interrupt import Interrupt, as_ctrl_c, exit_code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_program_takes_every_ending_as_ctrl_c(number, code):
    before = signal.getsignal(number)
    with as_ctrl_c():
        seen = []
        with Interrupt(lambda: seen.append(1)) as stop:
            os.kill(os.getpid(), number)
            assert stop.hit
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert seen == [1]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert exit_code() == code
    assert signal.getsignal(number) is before
    with as_ctrl_c():
        assert exit_code() == 130


def test_a_library_leaves_the_endings_alone():
    with Interrupt(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler


def test_an_ignored_signal_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with as_ctrl_c(), Interrupt(lambda: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.hit
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_stopped_service_leaves_no_partial_file(tmp_path):
    pytest.importorskip("av")
    command = [sys.executable, "-m", "crispseg", "scenes", "-n", "5000", "--size", "64x96", "--video", "-o", "s"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "s" / "images").glob("0002.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (143, "error: interrupted\n")
    assert not list(tmp_path.rglob("*.partial*"))
    assert not (tmp_path / "s" / "clip.mp4").exists()


def test_a_terminal_that_goes_away(tmp_path):
    """Its progress bar cannot be drawn any more, nor an error be told; that is no reason for a traceback."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "crispseg", "scenes", "-n", "5000", "--size", "64x96", "-o", "s"]
    # A session of its own, whose terminal is the slave: closing the master hangs it up.
    program = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(%r, %r)"
    start = [sys.executable, "-c", program % (sys.executable, command)]
    process = subprocess.Popen(start, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "s" / "images").glob("0002.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.close(master)
    assert process.wait(timeout=60) == 129
    assert not list(tmp_path.rglob("*.partial"))
