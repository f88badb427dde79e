"""A bounded queue between two threads that also carries the end and the failure of either side."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Callable, Deque, Iterator, Optional

# Waits are short, so that Ctrl-C is noticed on every platform.
_WAIT_S = 0.2


class Closed(Exception):
    """The other side is gone; stop quietly."""


class Channel:
    """``put`` blocks while ``size`` items wait, iterating blocks while none does.

    ``cancelled`` may be set to True without a lock (from a signal handler): both sides notice within 0.2 s.
    ``close()`` by the producer ends the iteration after the items that wait; ``cancel()`` by anybody ends both sides at
    once; ``fail(error)`` raises ``error`` on the consumer's side after the waiting items.
    """

    def __init__(self, size: int) -> None:
        self._items: Deque[Any] = deque()
        self._size = size
        self._change = threading.Condition()
        self._closed = False
        self.cancelled = False
        self._error: Optional[BaseException] = None

    def put(self, item: Any) -> None:
        """Append; raises Closed when the queue was cancelled."""
        with self._change:
            while len(self._items) >= self._size and not self.cancelled:
                self._change.wait(_WAIT_S)
            if self.cancelled:
                raise Closed
            self._items.append(item)
            self._change.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._change:
                while not self._items and not self._closed and not self.cancelled:
                    self._change.wait(_WAIT_S)
                if self.cancelled:
                    return
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._change.notify_all()
            yield item

    def close(self) -> None:
        """No more items."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def fail(self, error: BaseException) -> None:
        """No more items, because of ``error``."""
        with self._change:
            self._error = error
            self._closed = True
            self._change.notify_all()

    def cancel(self) -> None:
        """Nobody reads or writes any more; waiting items are thrown away."""
        with self._change:
            self.cancelled = True
            self._items.clear()
            self._change.notify_all()


class Worker:
    """A thread that keeps the exception it died of in ``error``; ``on_error`` is called from it."""

    def __init__(self, target: Callable[[], None], name: str, on_error: Callable[[BaseException], None]) -> None:
        self.error: Optional[BaseException] = None
        self._target = target
        self._on_error = on_error
        self._thread = threading.Thread(target=self._run, name="crispseg-" + name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._target()
        except Closed:
            pass
        except BaseException as error:
            self.error = error
            self._on_error(error)

    def join(self) -> None:
        """Wait for the end (in short waits: Ctrl-C gets through)."""
        while self._thread.is_alive():
            self._thread.join(_WAIT_S)
