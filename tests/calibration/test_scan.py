"""The scan on networks that are only numbers: ranking, the shortest list, going on after an interruption."""

from __future__ import annotations

import json
import xml.dom.minidom

import pytest

from crispseg.calibration.scan import Layer, State, blocks, key_of, scan
from crispseg.calibration.scan_plot import svg
from crispseg.errors import InputError

COSTS = {"a": 0.1, "b": 2.0, "c": 0.3, "d": 1.0, "e": 0.0}
LAYERS = [Layer(name, 0.2) for name in COSTS]


class Network:
    """Costs add up; ``together``: more when all of these are int8."""

    def __init__(self, limit, together=(), extra=0.0, stop_after=None):
        self.limit, self.together, self.extra, self.stop_after = limit, set(together), extra, stop_after
        self.calls = []

    def __call__(self, int8):
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(frozenset(int8))
        cost = sum(COSTS[name] for name in int8)
        cost += self.extra if self.together and self.together <= set(int8) else 0.0
        return {"changed": cost, "passed": cost <= self.limit}


def test_ranking_and_an_empty_list_when_everything_passes():
    network = Network(4.0)
    result = scan(LAYERS, network, State(None, "k"))
    assert [effect.layer.name for effect in result.effects] == ["b", "d", "c", "a", "e"]
    assert result.excluded == ()
    assert result.whole["changed"] == pytest.approx(3.4)
    assert network.calls == [frozenset(COSTS), *[frozenset([name]) for name in COSTS]]


@pytest.mark.parametrize(
    ("limit", "excluded"), [(3.0, {"b"}), (1.0, {"b", "d"}), (0.35, {"b", "d", "c"}), (0.05, {"b", "d", "c", "a"})]
)
def test_the_shortest_list(limit, excluded):
    result = scan(LAYERS, Network(limit), State(None, "k"))
    assert set(result.excluded) == excluded
    assert result.after["passed"]
    assert result.after["changed"] <= limit


def test_a_layer_that_the_list_does_not_need_is_taken_out_again():
    # b costs most alone, but what fails the gate is a and c together; c ranks above a.
    network = Network(3.2, together=("a", "c"), extra=5.0)
    result = scan(LAYERS, network, State(None, "k"))
    assert result.excluded == ("c",)


def test_no_list_meets_an_impossible_gate():
    result = scan([Layer("b", 1.0), Layer("d", 1.0)], Network(0.5), State(None, "k"))
    assert (result.excluded, result.after) == (None, None)


def test_it_goes_on_where_it_was_interrupted(tmp_path):
    path = tmp_path / "state.json"
    first = Network(1.0, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        scan(LAYERS, first, State(path, "k"))
    assert len(json.loads(path.read_text())["results"]) == 4
    state, second, texts = State(path, "k"), Network(1.0), []
    assert state.found == 4
    result = scan(LAYERS, second, state, lambda *at: texts.append(at))
    assert not set(first.calls) & set(second.calls)
    whole = Network(1.0)
    assert scan(LAYERS, whole, State(None, "k")) == result
    assert set(first.calls + second.calls) == set(whole.calls)
    assert texts[0] == (0, 6, "everything")
    assert all(done <= total for done, total, _ in texts)
    third = Network(1.0)
    assert scan(LAYERS, third, State(path, "k")) == result
    assert third.calls == []
    assert not list(tmp_path.glob("*.partial"))


def test_state_files_that_do_not_belong_are_refused(tmp_path):
    path = tmp_path / "state.json"
    State(path, key_of({"bundle": 1})).put("x", {"changed": 1})
    with pytest.raises(InputError, match="another bundle, other images or other options; remove it"):
        State(path, key_of({"bundle": 2}))
    for text in ("", "[]", '{"format": 2, "key": "k", "results": {}}', '{"format": 1, "key": "k"}', "\x80"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match="expected what an earlier scan wrote"):
            State(path, "k")
    with pytest.raises(InputError, match="cannot be read"):
        State(tmp_path, "k")
    with pytest.raises(InputError, match="cannot write"):
        State(tmp_path / "state.json" / "inside", "k").put("x", 1)


def test_layers_need_names():
    for layers in ([], [Layer("a", 1), Layer("a", 1)]):
        with pytest.raises(InputError, match="names of their own"):
            scan(layers, Network(1), State(None, "k"))


def test_blocks():
    names = ["stem", "enc0.0.conv1", "enc0.0.conv2", "down1", "/layer1/0/conv", "/layer1/0/down.0"]
    assert blocks(names) == {
        "stem": ["stem"], "enc0.0": ["enc0.0.conv1", "enc0.0.conv2"], "down1": ["down1"],
        "/layer1/0": ["/layer1/0/conv"], "/layer1/0/down": ["/layer1/0/down.0"],
    }  # fmt: skip


def test_picture():
    rows = [
        {"layer": "<conv> & " + "x" * 80, "changed": 1.5, "macs": 10.0, "exclude": True},
        {"layer": "b", "changed": 0.0, "macs": 0.0, "exclude": False},
    ]
    for some in (rows, rows[1:], []):
        document = xml.dom.minidom.parseString(svg(some, 'scan of "a" & b'))
        assert len(document.getElementsByTagName("g")) == len(some)
    assert 'class="out"' in svg(rows, "t")
    assert 'class="out"' not in svg(rows[1:], "t")
