"""Edited manifests of native artefacts: whatever changed, nothing but a refusal or the same results comes of it."""

from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("onnx")

from test_native_artefact import PRECISIONS, both, build, bundle, load, outputs, quantised, same  # noqa: F401  (fixtures)

from crispseg.engines import cache, native_artefact
from crispseg.errors import BundleError


@pytest.mark.parametrize("precision", PRECISIONS)
def test_edited_manifests_are_refused_or_do_no_harm(both, precision):  # noqa: F811
    """One value or character of many is another: the command that mends it, or the same results."""
    artefact = build(both, precision)
    path, rng = artefact.path / cache.MANIFEST, random.Random(1)
    good = path.read_text()
    with load(both, None, precision) as engine:
        wanted = outputs(engine)
    refused = []
    for turn in range(120):
        at = rng.randrange(len(good))
        path.write_text(good[:at] + chr(rng.randrange(32, 127)) + good[at + 1 :] if turn % 2 else edited(good, rng))
        try:
            with load(both, native_artefact.find(both, precision).artefact, precision) as engine:
                assert same(outputs(engine), wanted)
        except BundleError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all("run `crispseg build" in text for text in refused)


def edited(text, rng):
    """JSON with one value, at any depth, replaced or gone."""
    data = node = json.loads(text)
    while True:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.2:
            break
        node = node[key]
    if rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice([None, 0, -1, 1 << 70, "x", [], {}, [0, 64], 1.5, True, "../x"])
    return json.dumps(data)
