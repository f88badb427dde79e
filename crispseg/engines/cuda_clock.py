"""Stage times on the device: an event at the end of every stage of a stream's work."""

from __future__ import annotations

from typing import Dict, List

from crispseg.engines.cuda import Context, Event, Stream


class StageClock:
    """Marks on one stream. Recorded once in a graph, they get new times at every launch of it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._events: List[Event] = []
        self._stages: List[str] = []

    def reserve(self, marks: int) -> None:
        """Make the events of so many marks now, so that a capture makes none."""
        while len(self._events) <= marks:
            self._events.append(self._context.event())

    @property
    def marks(self) -> int:
        """Marks since the start."""
        return len(self._stages)

    def start(self, stream: Stream) -> None:
        """Begin anew; events are used again."""
        self._stages = []
        self._record(stream, 0)

    def mark(self, stream: Stream, stage: str) -> None:
        """What was enqueued since the last mark belongs to ``stage``."""
        self._stages.append(stage)
        self._record(stream, len(self._stages))

    def _record(self, stream: Stream, index: int) -> None:
        self.reserve(index)
        stream.record(self._events[index])

    def times(self) -> Dict[str, float]:
        """Stage -> ms on the device, in order of first use; a stage's parts are added. Call when the work is done."""
        times: Dict[str, float] = {}
        for index, stage in enumerate(self._stages):
            times[stage] = times.get(stage, 0.0) + self._events[index + 1].since(self._events[index])
        return times

    def close(self) -> None:
        """Free the events."""
        for event in self._events:
            event.close()
        self._events, self._stages = [], []
