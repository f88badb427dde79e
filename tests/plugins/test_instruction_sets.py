"""Every instruction set, chosen by $CRISPSEG_ISA, gives its bits again: over the op table, thread counts and runs."""

from __future__ import annotations

import numpy as np
import pytest
import test_conv
import test_winograd
from native_cases import isas
from op_table import CONVS, conv_data

from crispseg.plugins import loader
from crispseg.plugins import native_ops as ops

every_isa = pytest.mark.parametrize("isa", isas())


@every_isa
def test_the_same_bits_on_any_number_of_threads(isa, monkeypatch):
    monkeypatch.setenv("CRISPSEG_ISA", isa)
    with loader.Native(1) as one, loader.Native(5) as five:
        assert {one.isa, five.isa} == {isa}
        for conv in CONVS:
            data = conv_data(conv)
            order = ops.plan_map(one, data["map"]) if "map" in data else None
            wanted = test_conv.run(one, conv, data)
            for context, way in ((one, None), (five, order)):
                for a, b in zip(wanted, test_conv.run(context, conv, data, way)):
                    assert a.tobytes() == b.tobytes(), conv.name


@every_isa
def test_winograd_too(isa, monkeypatch):
    monkeypatch.setenv("CRISPSEG_ISA", isa)
    with loader.Native(1) as one, loader.Native(5) as five:
        for conv in test_winograd.ROWS:
            data = conv_data(conv)
            for side in (2, 4):
                for a, b in zip(test_winograd.run(one, conv, data, side), test_winograd.run(five, conv, data, side)):
                    assert a.tobytes() == b.tobytes(), conv.name


def test_instruction_sets_agree():
    """To rounding: the generic one has no fused multiply-add."""
    names = [name for name in isas() if isinstance(name, str)]
    if len(names) < 2:
        pytest.skip("one instruction set")
    contexts = [loader.Native(1, name) for name in names]
    for conv in CONVS:
        data = conv_data(conv)
        first, *others = (test_conv.run(context, conv, data) for context in contexts)
        for other in others:
            for a, b in zip(first, other):
                if a.size and not np.isnan(a).any():
                    assert np.abs(a - b).max() <= 1e-5 * max(1e-3, np.abs(a).max()), conv.name
    for context in contexts:
        context.close()
