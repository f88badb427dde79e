"""csg_check_logits on a GPU (or the emulated driver): what has no softmax is counted, masked classes become finite."""

from __future__ import annotations

import numpy as np
import pytest

from crispseg.errors import InputError
from crispseg.plugins.cuda_loader import F16, F32, I8
from crispseg.runtime.not_finite import check_logits

TYPES = [(np.float32, F32), (np.float16, F16)]
# C, size: one block and many, whole warps and odd ends.
SIZES = [(19, (16, 40)), (1, (1, 1)), (3, (1, 33)), (11, (23, 31)), (256, (3, 5)), (2, (90, 100))]


def spoiled(classes, size, dtype, seed=0):
    """(logits, pixels without softmax): every kind of value in random pixels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (classes, *size)).astype(dtype)
    kinds = rng.integers(0, 12, size)
    one = rng.integers(0, classes, size)
    at = np.arange(classes)[:, None, None] == one
    for kind, value in ((1, np.nan), (2, np.inf), (3, -np.inf)):
        logits[at & (kinds == kind)] = value
    for kind, value in ((4, np.nan), (5, np.inf), (6, -np.inf)):
        logits[:, kinds == kind] = value
    logits[at & (kinds == 7)] = np.finfo(dtype).max
    logits[at & (kinds == 8)] = np.finfo(dtype).min
    wrong = np.isin(kinds, (1, 2, 4, 5, 6)) | ((kinds == 3) & (classes == 1))
    return logits, wrong


class Check:
    """csg_check_logits over poisoned memory."""

    def __init__(self, gpu, logits, kind):
        self.gpu, self.kind, self.logits, self.count = gpu, kind, gpu.put(logits), gpu.room(1, np.int32)

    def enqueue(self):
        self.gpu.call("csg_check_logits", self.kind, self.logits, *self.logits.shape, self.count)


@pytest.mark.parametrize(("dtype", "kind"), TYPES, ids=["f32", "f16"])
@pytest.mark.parametrize(("classes", "size"), SIZES, ids=str)
def test_counts_what_has_no_softmax(gpu, classes, size, dtype, kind):
    logits, wrong = spoiled(classes, size, dtype)
    check = Check(gpu, logits, kind)
    check.enqueue()
    assert check.count.get()[0] == wrong.sum()
    found = check.logits.get()
    masked = np.isneginf(logits) & ~wrong
    assert (found[masked] == dtype(-1e30 if dtype == np.float32 else -65504)).all()
    assert found[~masked].tobytes() == logits[~masked].tobytes()
    if dtype == np.float32:
        exact = logits.copy()[None]
        assert check_logits(exact) == wrong.sum()
        assert exact.tobytes() == found.tobytes(), "the CPU pipeline has another rule"
    gpu.same_in_any_order(check.enqueue, [check.count])


def test_a_graph_counts_anew_at_every_launch(gpu):
    logits, wrong = spoiled(5, (9, 14), np.float16)
    check = Check(gpu, logits, F16)
    graph = gpu.capture(check.enqueue)
    for _ in range(2):
        gpu.launch(graph)
        assert check.count.get()[0] == wrong.sum() > 0


def test_bad_arguments(gpu):
    check = Check(gpu, np.zeros((2, 3, 3), np.float32), F32)
    with pytest.raises(InputError, match="csg_check_logits: logits: expected fp32 or fp16"):
        gpu.call("csg_check_logits", I8, check.logits, 2, 3, 3, check.count)
    with pytest.raises(InputError, match="csg_check_logits: C = 0"):
        gpu.call("csg_check_logits", F32, check.logits, 0, 3, 3, check.count)
    with pytest.raises(InputError, match="csg_check_logits: the count"):
        gpu.call("csg_check_logits", F32, check.logits, 2, 3, 3, None)
