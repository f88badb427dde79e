"""The flow through the real Python bindings, on a library that records. Needs $CRISPSEG_TRT_BINDINGS: see
real_bindings.py for the folder's form."""  # noqa: D209

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("CRISPSEG_TRT_BINDINGS", "")
HERE = Path(__file__).parent
VERSIONS = sorted(p.parent.name for p in Path(FOLDER).glob("*/tensorrt_bindings")) if FOLDER else []


@pytest.mark.skipif(not VERSIONS, reason="CRISPSEG_TRT_BINDINGS names no folder with bindings (real_bindings.py)")
@pytest.mark.parametrize("version", VERSIONS or ["none"])
def test_flow_through_the_real_bindings(version):
    done = subprocess.run(
        [sys.executable, str(HERE / "real_bindings.py"), FOLDER, version], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    old, newest = version.startswith("8."), version.startswith("11.")
    assert result["classes"] == (3 if old or newest else 4)
    assert result["flags"] == (1 if version.startswith("8.") else 1 if newest else 3)
    if "calls" not in result:
        print(f"TensorRT {result['version']}: no headers; {result['classes']} classes derived and constructed")
        return
    print(f"TensorRT {result['version']}: {result['calls']} calls of {result['different']} methods")
    assert result["different"] > 45
    needed = [
        "IParser.parse",
        "IBuilder.buildSerializedNetwork",
        "ITimingCache.serialize",
        "IExecutionContext.enqueueV3",
    ]
    needed += [
        "IExecutionContext.setTensorAddress",
        "IOptimizationProfile.setDimensions",
        "IExecutionContext.setProfiler",
        "IRuntime.setDLACore",
    ]
    needed += ["IExecutionContext.setDeviceMemory"]
    needed += ["ICudaEngine.createExecutionContextWithoutDeviceMemory"] if old else []
    for name in needed:
        assert any(name in called for called in result["names"]), name
    # The library called back: our logger, progress monitor and calibrator answered through the real bindings.
    assert [build["warnings"] for build in result["builds"]] == [1] * len(result["builds"])
    assert ("step.true" in result["names"]) is (not old)
    assert ("ranges.read" in result["names"]) is (not newest)
    typing = [False, False] if old else [True] if newest else [True, False]
    assert [build["strongly_typed"] for build in result["builds"]] == typing
