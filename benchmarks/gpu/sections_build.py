"""Sections that prepare and that run other programs: build, prepare, tests, sanitizer, plugin."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

from gpu import building
from gpu.settings import EMULATED, IMAGE, REFINER, REFINER_INT8, ROOT, Settings, environment, int8_name, tiny
from gpu.skip import Skip

# Tests that run on whatever driver is there; patterns under tests/.
_TESTS = ("plugins/test_cuda_*.py", "engines/test_cuda_*.py", "runtime/test_gpu_*.py")
_EMULATOR_ONLY = (
    "tests/plugins/test_cuda_conv.py::test_kernels_of_the_device",
    "tests/plugins/test_cuda_context.py::test_no_device_and_old_devices",
)
_TEST_SECONDS = 140


def run_build(settings: Settings) -> Dict[str, Any]:
    """Both libraries and the kernels for this GPU; where they lie is read by the later sections."""
    from crispseg.engines import cuda

    context = cuda.open_device()
    emulated = EMULATED in context.info.name.lower()
    if emulated:  # its kernels are those sources too, compiled by g++
        sys.path.insert(0, str(ROOT))
        from tests import emulation

        (settings.folder / IMAGE).write_bytes(emulation.image())
        os.environ["CRISPSEG_CUDA_LIBRARY"] = str(emulation.host_library())
    result = building.build(settings, context.info.capability, with_image=not emulated)
    (settings.folder / "libraries.json").write_text(json.dumps(result["libraries"]))
    image = result.get("image", {})
    spills = [k["name"] for k in image.get("kernels", ()) if k.get("spill_bytes")]
    result["line"] = "host %.0f s, kernels %s s, %d kernels%s" % (
        result["host_seconds"], image.get("seconds", "-"), len(image.get("kernels", ())),
        ", spilling: " + ", ".join(spills) if spills else "",
    )  # fmt: skip
    return result


def run_prepare(settings: Settings) -> Dict[str, Any]:
    """The default refiner with random weights as ONNX, and the scene, for the sections that follow."""
    import numpy as np

    from gpu.layers import scene

    image, logits, coords = scene(settings)
    np.savez(str(settings.folder / "scene.npz"), image=image, logits=logits)
    density = 100 * len(coords) / (settings.height * settings.width)
    target = settings.folder / REFINER
    if target.is_file():  # given with --refiner
        given = "refiner given%s" % ("" if (settings.folder / REFINER_INT8).is_file() else " (no int8 file beside it)")
        return {"line": "%s, %d active pixels (%.2f %%)" % (given, len(coords), density),
                "active": len(coords), "density": density}  # fmt: skip
    missing = [name for name in ("torch", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise Skip(
            "the refiner is exported with torch and onnx; not installed: %s. Export it elsewhere (--export FILE) and "
            "name it here (--refiner FILE)" % ", ".join(missing)
        )
    parameters, share = export(settings, logits.shape[1:], target)
    return {"line": "%.1f M parameters, %.1f %% of the multiply-adds in the int8 form, %d active pixels (%.2f %%)"
            % (parameters / 1e6, 100 * share, len(coords), density),
            "parameters": parameters, "int8_share": share, "active": len(coords), "density": density}  # fmt: skip


def export(settings: Settings, logits_shape: Sequence[int], path: Path) -> Tuple[int, float]:
    """Random weights whose activations stay of order one: norms take the statistics of a small scene.

    Writes the float refiner and, beside it, its int8 form, calibrated on the small scene; returns the number of
    parameters and the share of the multiply-adds that is int8.
    """
    import torch
    from bands import band_scene

    from crispseg.calibration.refiner import collect_ranges, quantise_refiner
    from crispseg.engines import native
    from crispseg.engines.spec import EngineSpec
    from crispseg.export.refiner import export_refiner
    from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner

    torch.manual_seed(0)
    config = SparseRefineConfig(num_classes=settings.classes, planes=settings.planes, repeats=settings.repeats)
    module = SparseRefiner(config)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.momentum = 1.0
    height, width = min(256, settings.height), min(512, settings.width)
    image, logits, _ = band_scene(height, width, classes=settings.classes, stride=settings.stride, density=0.15)
    with torch.no_grad():
        module.train().refine(torch.from_numpy(image)[None], torch.from_numpy(logits))
    model = export_refiner(
        module.eval(), height=settings.height, width=settings.width, logits_shape=tuple(logits_shape),
        threshold=settings.threshold, capacity=settings.capacity,
    )  # fmt: skip
    path.write_bytes(model.SerializeToString())
    observed = settings.folder / "observed.onnx"

    def open_engine(exposed: Any) -> Any:
        observed.write_bytes(exposed.SerializeToString())
        return native.load(observed, EngineSpec("native", threads=0))

    small = export_refiner(module, height=height, width=width, logits_shape=logits.shape[1:],
                           threshold=settings.threshold)  # fmt: skip
    quantised = quantise_refiner(model, collect_ranges(small, lambda: [(image, logits)], open_engine))
    path.with_name(int8_name(path.name)).write_bytes(quantised.model.SerializeToString())
    observed.unlink()
    return sum(p.numel() for p in module.parameters()), quantised.share


def run_tests(settings: Settings) -> Dict[str, Any]:
    """The op table and the engines' tests on this driver."""
    return pytest_files(settings, [path for pattern in _TESTS for path in sorted((ROOT / "tests").glob(pattern))])


def pytest_files(settings: Settings, files: Sequence[Path], **variables: str) -> Dict[str, Any]:
    """Test files one by one on the real driver with this run's kernels, as long as the time lasts."""
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed")
    if settings.dry_run:
        raise Skip("the test suite runs these with the emulated driver anyway")
    image = settings.folder / "kernels.cubin"
    if not image.is_file() or not files:
        raise Skip("no kernel image: section build did not make one" if files else "no such tests in this tree")
    end = time.monotonic() + _TEST_SECONDS
    result: Dict[str, Any] = {"passed": 0, "skipped": 0, "failed": {}, "skipped_because": {}, "files": {}, "tails": {}}
    for path in files:
        report = settings.folder / (path.stem + ".xml")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", str(report), str(path)]
        words += [word for name in _EMULATOR_ONLY for word in ("--deselect", name)]
        try:
            done = _run(
                words, max(1.0, end - time.monotonic()), settings, CRISPSEG_KERNEL_IMAGE=str(image), **variables
            )
            tail = done.stdout.decode("utf-8", "replace")[-2500:]
        except subprocess.TimeoutExpired:
            result["files"][path.name] = "out of time"
            continue
        found = (
            read_junit(report) if report.is_file() else {"passed": 0, "skipped": 0, "failed": {path.name: tail[-300:]}}
        )
        result["files"][path.name] = "%d passed, %d failed" % (found["passed"], len(found["failed"]))
        result["passed"] += found["passed"]
        result["skipped"] += found["skipped"]
        result["failed"].update(found["failed"])
        for reason, number in found.get("skipped_because", {}).items():
            result["skipped_because"][reason] = result["skipped_because"].get(reason, 0) + number
        if found["failed"]:
            result["tails"][path.name] = tail
    late = [name for name, text in result["files"].items() if text == "out of time"]
    result["line"] = "%d passed, %d skipped, %d failed%s" % (
        result["passed"], result["skipped"], len(result["failed"]), ", out of time: " + ", ".join(late) if late else "",
    )  # fmt: skip
    return result


def _run(words: Sequence[str], seconds: float, settings: Settings, **extra: str) -> Any:
    """A program with the libraries of this run and further variables; its stderr is part of stdout."""
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False,
        env={**environment(settings), **extra}, cwd=str(ROOT),
    )  # fmt: skip


def read_junit(path: Path) -> Dict[str, Any]:
    """Counts, failures {test: message}, and how many tests were skipped for which reason."""
    passed = skipped = 0
    failed: Dict[str, str] = {}
    reasons: Dict[str, int] = {}
    for case in ElementTree.parse(str(path)).iter("testcase"):
        name = "%s::%s" % (case.get("classname"), case.get("name"))
        bad = [child for child in case if child.tag in ("failure", "error")]
        skip = case.find("skipped")
        if bad:
            failed[name] = (bad[0].get("message") or "")[:300]
        elif skip is not None:
            skipped += 1
            reason = (skip.get("message") or "")[:200]
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "skipped_because": reasons, "failed": failed}


def run_sanitizer(settings: Settings) -> Dict[str, Any]:
    """compute-sanitizer (memcheck, then racecheck) over the checks on a small frame."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if settings.dry_run or not os.path.exists(program):
        raise Skip("compute-sanitizer: " + ("not with an emulated driver" if settings.dry_run else "not found"))
    small = dataclasses.replace(
        tiny(str(settings.folder / "small")), dry_run=False, height=96, width=160, planes=(16, 32, 64)
    )
    small.save()
    shutil.copy(str(settings.folder / "libraries.json"), str(small.folder / "libraries.json"))
    if importlib.util.find_spec("torch") is None:
        raise Skip("the small refiner is exported with torch")
    run_prepare(small)
    result: Dict[str, Any] = {"failed": {}, "tools": {}}
    for tool, seconds in (("memcheck", 55), ("racecheck", 35)):
        words = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", sys.executable]
        words += [str(Path(__file__).resolve().parent / "run.py"), "--section", "checks", "--work", small.work]
        try:
            done = _run(words, seconds, small)
        except subprocess.TimeoutExpired:
            result["tools"][tool] = "not done in %d s" % seconds
            continue
        text = done.stdout.decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
        result["tools"][tool] = lines[-1] if lines else "exit %d: %s" % (done.returncode, text[-500:])
        if done.returncode == 9:
            result["failed"][tool] = "\n".join(line for line in text.splitlines() if line.startswith("===="))[-2500:]
    result["line"] = "; ".join("%s: %s" % item for item in result["tools"].items())
    return result


def run_plugin(settings: Settings) -> Dict[str, Any]:
    """The plugin objects with a real enqueue through the C++ harness, where TensorRT's headers are at hand."""
    variable = "CRISPSEG_TRT_HEADERS"
    headers = os.environ.get(variable, "")
    if not headers:
        include = tensorrt_headers()
        if not include:
            raise Skip("no TensorRT headers: set TensorRT_ROOT (folder with include/NvInfer.h)")
        folder = settings.folder / "tensorrt" / "found"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "include").exists():
            (folder / "include").symlink_to(include)
        headers = str(folder.parent)
    return pytest_files(
        settings, sorted((ROOT / "tests" / "plugins").glob("test_tensorrt_*.py")), **{variable: headers}
    )


def tensorrt_headers() -> str:
    """Folder that holds NvInferRuntime.h, or ""."""
    roots = [os.environ.get(name, "") for name in ("TensorRT_ROOT", "TENSORRT_ROOT", "TENSORRT_INCLUDE_DIR")]
    places = [Path(root) / sub for root in roots if root for sub in ("include", ".")]
    places += [Path("/usr/include/x86_64-linux-gnu"), Path("/usr/include/aarch64-linux-gnu"), Path("/usr/include")]
    return next((str(place) for place in places if (place / "NvInferRuntime.h").is_file()), "")
