"""Ctrl-C, and what ends a service, as a request to finish: the first one asks, the second one breaks off."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any, Callable, Dict, Iterator

# SIGTERM: systemd, docker stop, a shutdown. SIGHUP: the terminal or the connection is gone.
_ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_received = signal.SIGINT


def exit_code() -> int:
    """What a shell expects of a program that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + int(_received)


def _note(number: int) -> None:
    global _received
    _received = signal.Signals(number)


def _raise(number: int, stack: Any) -> None:
    _note(number)
    raise KeyboardInterrupt


@contextlib.contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP do what Ctrl-C does: files are finished or removed, whoever made them.

    For programs: a library leaves the signals of its process alone. Ignored signals (nohup) stay so; outside the main
    thread nothing is installed.
    """
    old: Dict[int, Any] = {}
    _note(signal.SIGINT)
    if threading.current_thread() is threading.main_thread():
        for number in _ENDINGS:
            if signal.getsignal(number) is signal.SIG_DFL:
                old[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Interrupt:
    """``with Interrupt(on_first) as stop``: the first signal sets ``stop.hit`` and calls ``on_first``.

    The signals are SIGINT, and inside ``as_ctrl_c`` SIGTERM and SIGHUP. ``on_first`` runs inside the signal handler: it
    may set plain attributes, not take locks. A second signal raises KeyboardInterrupt. Outside the main thread, or
    where SIGINT is ignored, nothing is installed for it.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.hit = False
        self._on_first = on_first
        self._old: Dict[int, Any] = {}

    def _handle(self, number: int, stack: Any) -> None:
        _note(number)
        if self.hit:
            raise KeyboardInterrupt
        self.hit = True
        self._on_first()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_ENDINGS):
                current = signal.getsignal(number)
                if current is _raise or (number == signal.SIGINT and current not in (signal.SIG_IGN, None)):
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
