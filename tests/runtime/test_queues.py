"""Channels between the threads of a run."""

from __future__ import annotations

import pytest

from crispseg.errors import InputError
from crispseg.runtime.queues import Channel, Closed, Worker


def test_channel():
    channel = Channel(2)
    worker = Worker(lambda: [channel.put(i) for i in range(5)] and channel.close(), "test", channel.fail)
    channel_items = list(zip(channel, range(5)))
    assert [item for item, _ in channel_items] == list(range(5))
    channel.cancel()
    worker.join()
    with pytest.raises(Closed):
        channel.put(1)
    failing = Channel(2)
    failing.put("before")
    failing.fail(InputError("later"))
    items = iter(failing)
    assert next(items) == "before"
    with pytest.raises(InputError, match="later"):
        next(items)
