"""The plugin library in the real plugin registry of TensorRT 10 and 11 (the lean runtime's wheels, no GPU needed).

Set $CRISPSEG_TRT_LEAN to a folder of <version>/tensorrt_lean_bindings and /tensorrt_lean_libs (44 MB a version, filled
by tests/plugins/fetch_tensorrt_lean.py FOLDER), and $CRISPSEG_TRT_HEADERS to headers of TensorRT 10 or 11; or name a
built library in $CRISPSEG_TENSORRT_LIBRARY. Otherwise skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import emulation
import onnx
import pytest
import tensorrt_build

sys.path.append(str(Path(__file__).parents[1] / "engines"))

from native_net import unet  # noqa: E402

from crispseg.engines.tensorrt.registry import ENVIRONMENT  # noqa: E402
from crispseg.engines.tensorrt.strip import pack_with_library, strip_refiner  # noqa: E402
from crispseg.plugins.ops import BY_NAME  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
LEAN = os.environ.get("CRISPSEG_TRT_LEAN", "")
VERSIONS = sorted(p.name for p in Path(LEAN).glob("*") if (p / "tensorrt_lean_bindings").is_dir()) if LEAN else []
HEADERS = {v: p for v, p in tensorrt_build.header_folders().items() if int(v.split(".")[0]) >= 10}
BUILT = os.environ.get(ENVIRONMENT, "")
LIBRARIES = (
    [BUILT] if BUILT else sorted(HEADERS, key=lambda v: [int(n) for n in v.split(".")])[:: max(1, len(HEADERS) - 1)]
)
ALL = sorted(BY_NAME)

pytestmark = [
    pytest.mark.skipif(not VERSIONS, reason="no TensorRT lean runtime: set $CRISPSEG_TRT_LEAN (see this file)"),
    pytest.mark.skipif(not LIBRARIES, reason="no TensorRT headers: set $%s" % tensorrt_build.HEADERS),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory, emulated_driver):
    path = tmp_path_factory.mktemp("stripped") / "refiner.onnx"
    onnx.save(strip_refiner(unet(features="rgb,p").model(), "fp16", pack_with_library()).model, path)
    return path


def session(version, library, model):
    environment = {**os.environ, ENVIRONMENT: str(library)}
    paths = [str(Path(LEAN) / version), str(ROOT), str(Path(emulation.__file__).parents[1])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    script = Path(__file__).with_name("tensorrt_registry_session.py")
    done = subprocess.run(
        [sys.executable, str(script), str(library), str(model)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return json.loads(done.stdout.decode().splitlines()[-1])


@pytest.mark.parametrize("headers", LIBRARIES)
@pytest.mark.parametrize("version", VERSIONS)
def test_life_in_the_registry(version, headers, model):
    """Loaded, listed, created with all fields, deregistered, loaded again, registered by hand."""
    library = BUILT or tensorrt_build.plugin_library(HEADERS[headers])
    found = session(version, library, model)
    assert found["tensorrt"] == version
    assert found["before"] == []
    assert found["loaded"] == ALL
    assert found["classes"] == ["IPluginCreatorV3One"]
    assert found["again"]
    assert found["wrong"] == [True, True]
    assert found["fields"]["inputs"] == ["INT32", 1]
    assert found["fields"]["y_quant"] == ["FLOAT32", 1]
    assert {"taps", "cin", "cout", "packed", "relu", "x_type", "workspace"} < set(found["fields"])
    assert {row[0] for row in found["created"]} == set(ALL)
    for name, number, namespace, made, wanted, about, cache_id, limit in found["created"]:
        assert (number, namespace, made) == ("1", "", wanted)
        assert about.startswith(name)
        assert cache_id.startswith("crispseg-1-")
        assert limit == 100
    assert found["refused"]
    assert "SparseConv2d: taps: expected a value" in found["message"]
    assert found["deregistered"] == []
    assert found["reloaded"] == ALL
    # IPluginRegistry has another table of functions in 11 than in 10.
    assert found["registered"] == ([8, 0, -1] if found["same_major"] else [-2, -2, -1])
    assert found["after"] == (ALL if found["same_major"] else [])
