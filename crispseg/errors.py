"""The few exceptions of crispseg.

Every message says what was expected, what was found, and what to do about it. The command line prints the
message on one line and exits with ``exit_code``; it never shows a traceback for a user's mistake.
"""

from __future__ import annotations

import re

# user:password@ in front of a host, and GStreamer's property of rtspsrc.
_PASSWORD = re.compile(r"(://[^\s:@/]*):[^\s/]*@|(\buser-pw\s*=\s*)(\"[^\"]*\"|\S+)")


def hide_passwords(text: str) -> str:
    """A stream address or pipeline as reports and messages show it: with *** for a password."""
    return _PASSWORD.sub(lambda found: "%s:***@" % found[1] if found[1] is not None else "%s***" % found[2], text)


class CrispsegError(Exception):
    """Base of every error that a user can cause or fix. Exit code 2."""

    exit_code = 2


class InputError(CrispsegError):
    """An argument, image, video, label map or folder cannot be used."""


class BundleError(CrispsegError):
    """A bundle (or a file in it) is missing, truncated, altered or of another version."""


class CheckpointError(CrispsegError):
    """A checkpoint does not belong to the architecture: missing, extra or misshaped keys."""


class UnsupportedOp(CrispsegError):
    """A graph holds an operator, attribute or contract version that the engine cannot run."""


class EnvironmentMismatch(CrispsegError):
    """A named backend, provider, library or device is not there. Nothing is substituted silently."""


class AccuracyGate(CrispsegError):
    """A measured loss of accuracy is above the allowed one. Exit code 3."""

    exit_code = 3


class ParityError(AccuracyGate):
    """An exported file does not compute what its source computes: a wrong export, not a loss. Exit code 2."""

    exit_code = 2
