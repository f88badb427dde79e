"""Sensitivity scan: what each layer costs when it alone is int8, and the fewest layers that have to stay float.

The scan knows nothing of networks: it is given names and a function that measures the pipeline with some of them in
int8. Every measurement goes into a state file at once, so that an interrupted scan goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crispseg.errors import InputError
from crispseg.report import to_json, write_text

FORMAT = 1
MAX_STATE_BYTES = 1 << 28
TRIES = 24  # of taking a layer out of the proposed list again

# Names of what is int8 -> plain JSON with "changed" (percent of the pixels) and "passed" (of the gate).
Measure = Callable[[Collection[str]], Mapping[str, Any]]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Layer:
    """One layer or block. ``name``: unique; ``macs``: share of all multiply-adds of the pipeline's networks, 0..1."""

    name: str
    macs: float


@dataclass(frozen=True)
class Effect:
    """What a layer costs when it alone is int8. ``result``: what was measured."""

    layer: Layer
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Scan:
    """``effects``: the costliest first. ``whole``: everything int8. ``excluded``: the proposed list, None when no list
    meets the gate; ``after``: what was measured with it."""  # noqa: D209

    effects: tuple[Effect, ...]
    whole: Mapping[str, Any]
    excluded: tuple[str, ...] | None
    after: Mapping[str, Any] | None


class State:
    """Results of a scan on disk: JSON, replaced as a whole after every measurement.

    Args:
        path: of the file, None = keep them in memory.
        key: what the results depend on; a file with another key is refused.

    Raises:
        InputError: the file cannot be read, is no state, or belongs to another scan.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key
        self.results: dict[str, Any] = {}
        if path is not None and path.exists():
            self.results = _read(path, key)
        self.found = len(self.results)

    def get(self, name: str) -> Any:
        """A result, None when there is none."""
        return self.results.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a result; it is on disk when this returns."""
        self.results[name] = value
        if self.path is not None:
            write_text(self.path, to_json({"format": FORMAT, "key": self.key, "results": self.results}, None) + "\n")


def _read(path: Path, key: str) -> dict[str, Any]:
    fix = f"remove it, or name another file with --scan-state (this one: {path})"
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise ValueError("too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT or not isinstance(data["results"], dict) or not isinstance(data["key"], str):
            raise ValueError("another format")
    except OSError as error:
        raise InputError(f"scan state {path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"scan state: expected what an earlier scan wrote, found: {str(error)[:80]}; {fix}") from None
    if data["key"] != key:
        raise InputError(f"scan state: it belongs to a scan of another bundle, other images or other options; {fix}")
    return dict(data["results"])


def key_of(facts: Mapping[str, Any]) -> str:
    """Key of a scan: SHA-256 of plain JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()


def scan(layers: Sequence[Layer], measure: Measure, state: State, progress: Progress | None = None) -> Scan:
    """Measure every layer alone and find the shortest list of exclusions.

    First everything in int8, then each layer alone. When everything does not pass the gate, the costliest layers are
    excluded: as many as it takes (by bisection, with real measurements of the pipeline), then each of them is tried
    in int8 again, the cheapest first.

    Args:
        layers: what can be int8.
        measure: see ``Measure``; not called for what ``state`` has.
        state: results so far.
        progress: called with (measurements done, expected, what is measured).

    Raises:
        InputError: no layers.
    """
    names = [layer.name for layer in layers]
    if not names or len(set(names)) != len(names):
        raise InputError(f"scan: expected layers with names of their own, found {len(names)}")
    expected = len(names) + 1
    done = 0

    def measured(int8: Collection[str], what: str) -> Mapping[str, Any]:
        nonlocal done
        if progress:
            progress(done, max(expected, done + 1), what)
        entry = "int8:" + key_of({"int8": sorted(int8)})
        found = state.get(entry)
        if found is None:
            found = measure(int8)
            state.put(entry, found)
        done += 1
        return dict(found)

    whole = measured(names, "everything")
    effects = [Effect(layer, measured([layer.name], layer.name)) for layer in layers]
    effects.sort(key=lambda effect: (-effect.result["changed"], effect.layer.name))
    ranked = [effect.layer.name for effect in effects]

    def without(excluded: Collection[str]) -> Mapping[str, Any]:
        return measured([name for name in names if name not in excluded], f"without {len(excluded)}")

    if whole["passed"]:
        return Scan(tuple(effects), whole, (), whole)
    fails, passes = 0, len(ranked)  # the float pipeline passes
    expected += len(ranked).bit_length()
    after: Mapping[str, Any] | None = None
    while passes - fails > 1:
        middle = (fails + passes) // 2
        result = without(ranked[:middle])
        if result["passed"]:
            passes, after = middle, result
        else:
            fails = middle
    if after is None:
        return Scan(tuple(effects), whole, None, None)
    excluded = ranked[:passes]
    expected = done + min(TRIES, len(excluded) - 1)
    for name in list(reversed(excluded[:-1]))[:TRIES]:
        fewer = [item for item in excluded if item != name]
        result = without(fewer)
        if result["passed"]:
            excluded, after = fewer, result
    return Scan(tuple(effects), whole, tuple(excluded), after)


def blocks(names: Sequence[str]) -> dict[str, list[str]]:
    """Layers by block: what stands in front of the last dot or slash of their names; order kept."""
    found: dict[str, list[str]] = {}
    for name in names:
        cut = max(name.rfind("."), name.rfind("/"))
        found.setdefault(name[:cut] if cut > 0 else name, []).append(name)
    return found
