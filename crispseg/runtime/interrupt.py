"""Ctrl-C as a request to finish: the first one asks, the second one breaks off."""

from __future__ import annotations

import signal
import threading
from typing import Any, Callable


class Interrupt:
    """``with Interrupt(on_first) as stop``: the first SIGINT sets ``stop.hit`` and calls ``on_first``.

    ``on_first`` runs inside the signal handler: it may set plain attributes, not take locks. A second SIGINT raises
    KeyboardInterrupt. Outside the main thread, or where SIGINT is ignored, nothing is installed.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.hit = False
        self._on_first = on_first
        self._old: Any = None
        self._installed = False

    def _handle(self, number: int, stack: Any) -> None:
        if self.hit:
            raise KeyboardInterrupt
        self.hit = True
        self._on_first()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._old = signal.getsignal(signal.SIGINT)
            if self._old not in (signal.SIG_IGN, None):
                signal.signal(signal.SIGINT, self._handle)
                self._installed = True
        return self

    def __exit__(self, *unused: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._old)
