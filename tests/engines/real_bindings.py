"""The real Python bindings of TensorRT without TensorRT: on empty stand-in libraries, or on a recording one.

    python tests/engines/real_bindings.py FOLDER VERSION     (one process a version: the module can be loaded once)

FOLDER/VERSION/tensorrt_bindings is a bindings wheel, about 1 MB (fetch_tensorrt_bindings.py). With
FOLDER/VERSION/include (TensorRT's headers of the same major version, and NvOnnxParser.h) a library is generated and
compiled that implements every pure virtual method of the builder, parser and runtime interfaces, records the calls and
gives neutral answers; without them the module is imported and every Python class that the code derives from is
constructed. The wheels' and headers' licences allow use, not redistribution: nothing of them is in this repository.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CUDA_STUB = Path(__file__).parents[2] / "crispseg" / "plugins" / "tensorrt" / "cuda_stub"
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers")
INTERFACES = {
    "VBuilder": "IBuilder", "VBuilderConfig": "IBuilderConfig", "VNetworkDefinition": "INetworkDefinition",
    "VOptimizationProfile": "IOptimizationProfile", "VTimingCache": "ITimingCache", "VRuntime": "IRuntime",
    "VCudaEngine": "ICudaEngine", "VExecutionContext": "IExecutionContext", "VEngineInspector": "IEngineInspector",
    "VHostMemory": "IHostMemory", "VTensor": "ITensor", "VLayer": "ILayer",
}  # fmt: skip
_OPEN = "Dims d{}; d.nbDims = 4; d.d[0] = 1; d.d[1] = 3; d.d[2] = -1; d.d[3] = -1; return d;"
_SIZED = "Dims d{}; d.nbDims = 4; d.d[0] = 1; d.d[1] = 3; d.d[2] = 8; d.d[3] = 8; return d;"
# What a method answers when nothing (0, false, "") will not do. All else returns true, 0 or "".
ANSWERS = {
    "VBuilder.createBuilderConfig": "return new Fake_IBuilderConfig;",
    "VBuilder.createNetworkV2": "return new Fake_INetworkDefinition;",
    "VBuilder.createOptimizationProfile": "return new Fake_IOptimizationProfile;",
    "VBuilder.buildSerializedNetwork": "return new Fake_IHostMemory;",
    "VBuilder.getLogger": "return logger;",
    "VBuilder.getNbDLACores": "return 2;",
    "VRuntime.getNbDLACores": "return 2;",
    "VBuilderConfig.createTimingCache": "return new Fake_ITimingCache;",
    "VBuilderConfig.getTimingCache": "static Fake_ITimingCache cache; return &cache;",
    "VBuilderConfig.addOptimizationProfile": "return 0;",
    "VTimingCache.serialize": "return new Fake_IHostMemory;",
    "VNetworkDefinition.getNbInputs": "return 1;",
    "VNetworkDefinition.getInput": "static Fake_ITensor tensor; return &tensor;",
    "VNetworkDefinition.getNbLayers": "return 1;",
    "VNetworkDefinition.getLayer": "static Fake_ILayer layer; return &layer;",
    "VLayer.getType": "return LayerType::kCONVOLUTION;",
    "VLayer.getNbOutputs": "return 1;",
    "VLayer.getOutput": "static Fake_ITensor tensor; return &tensor;",
    "VLayer.getName": 'return "conv";',
    "VTensor.getName": 'return "x";',
    "VTensor.getDimensions": _OPEN,
    "VHostMemory.data": 'return const_cast<char*>("THEPLAN!");',
    "VHostMemory.size": "return 8;",
    "VHostMemory.type": "return DataType::kINT8;",
    "VRuntime.deserializeCudaEngine": "return new Fake_ICudaEngine;",
    "VRuntime.getLogger": "return logger;",
    "VCudaEngine.createExecutionContext": "return new Fake_IExecutionContext;",
    "VCudaEngine.createExecutionContextWithoutDeviceMemory": "return new Fake_IExecutionContext;",
    "VCudaEngine.createEngineInspector": "return new Fake_IEngineInspector;",
    "VCudaEngine.getNbIOTensors": "return 2;",
    "VCudaEngine.getIOTensorName": 'return index ? "y" : "x";',
    "VCudaEngine.getTensorIOMode": "return tensorName[0] == 'x' ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;",
    "VCudaEngine.getTensorShape": _OPEN,
    "VCudaEngine.getTensorDataType": "return DataType::kFLOAT;",
    "VCudaEngine.getDeviceMemorySize": "return 4096;",
    "VCudaEngine.getDeviceMemorySizeV2": "return 4096;",
    "VExecutionContext.getTensorShape": _SIZED,
    "VExecutionContext.getEngine": "static Fake_ICudaEngine engine; return engine;",
    "VExecutionContext.setProfiler": "seen_profiler = unnamed;",
    "VExecutionContext.enqueueV3": 'if (seen_profiler) seen_profiler->reportLayerTime("conv", 0.25f); return true;',
    "VEngineInspector.getEngineInformation": 'return "{\\"Layers\\": [\\"conv\\"]}";',
}


# Where the headers have them: what Python derives from is called back, through the bindings' own trampolines.
CALLBACKS = {
    "IProgressMonitor": (
        "VBuilderConfig.setProgressMonitor", "seen_monitor = unnamed;",
        'if (seen_monitor) { seen_monitor->phaseStart("Build", nullptr, 2);'
        ' seen_monitor->phaseStart("Inner", "Build", 1);'
        ' bool const on = seen_monitor->stepComplete("Build", 0); seen_monitor->phaseFinish("Build");'
        ' note(on ? "step.true" : "step.false"); }'),
    "IInt8Calibrator": (
        "VBuilderConfig.setInt8Calibrator", "seen_calibrator = unnamed;",
        "if (seen_calibrator) { size_t n = 0; seen_calibrator->readCalibrationCache(n);"
        ' note(n == 5 && seen_calibrator->getBatchSize() == 1 ? "ranges.read" : "ranges.lost"); }'),
}  # fmt: skip
_SEEN = {"IProgressMonitor": "seen_monitor", "IInt8Calibrator": "seen_calibrator"}


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)


def virtuals(body):
    """(result, name, arguments, const) of every pure virtual method of a class body."""
    pattern = r"virtual\s+([^;{}]*?)\b(\w+)\(([^;{}]*?)\)\s*(const)?\s*(?:noexcept)?\s*(?:override)?\s*=\s*0\s*;"
    for found in re.finditer(pattern, body, re.S):
        result, name, arguments, const = (re.sub(r"\s+", " ", part or "").strip() for part in found.groups())
        result = re.sub(r"TRT_DEPRECATED\s*|TRTNOEXCEPT", "", result).strip()
        arguments = re.sub(r"\s*=\s*[\w:\"]+(?=\s*(,|$))", "", arguments)
        arguments = re.sub(r"([*&])(?=\s*(,|$))", r"\1 unnamed", arguments, count=1)
        yield result, name, arguments, const


def class_bodies(text):
    return {m.group(1): m.group(2) for m in re.finditer(r"class (\w+)[^;{]*\{(.*?)\n\};", without_comments(text), re.S)}


def answer(owner, name, result, answers=ANSWERS):
    given = answers.get(f"{owner}.{name}")
    if given:
        return given
    if result == "void":
        return ""
    return "std::abort();" if result.endswith("&") else f"return neutral<{result}>();"


def recording_source(include):
    """C++ of the recording library for the headers in ``include``."""
    implementation = class_bodies((include / "NvInferImpl.h").read_text())
    answers, before, headers = dict(ANSWERS), "", (include / "NvInfer.h").read_text()
    seen = []
    for name, (method, keep, call) in CALLBACKS.items():
        if re.search(rf"\b{name}\b", headers):
            answers[method], before = keep, before + call
            seen.append(f"static {name}* {_SEEN[name]};")
    log = 'logger->log(ILogger::Severity::kWARNING, "from the library"); '
    answers["VBuilder.buildSerializedNetwork"] = log + before + ANSWERS["VBuilder.buildSerializedNetwork"]
    out = [
        "#include <NvInfer.h>\n#include <NvOnnxParser.h>\n#include <cstdlib>\n#include <string>",
        "using namespace nvinfer1; using namespace nvinfer1::apiv;",
        "static std::string calls; static ILogger* logger; static IProfiler* seen_profiler;",
        *seen,
        "static void note(char const* name) { calls += name; calls += '\\n'; }",
        "template <class T> struct Neutral { static T value() { return T{}; } };",
        "template <> struct Neutral<bool> { static bool value() { return true; } };",
        'template <> struct Neutral<char const*> { static char const* value() { return ""; } };',
        "template <class T> T neutral() { return Neutral<T>::value(); }",
        '#define EXPORT extern "C" __attribute__((visibility("default")))',
    ]
    out += [f"struct Fake_{name};" for name in INTERFACES.values()]
    bodies = []
    for inner, outer in INTERFACES.items():
        out.append(f"struct Record_{inner} : public {inner} {{")
        for result, name, arguments, const in virtuals(implementation[inner]):
            out.append(f"  {result} {name}({arguments}) {const} noexcept override;")
            does = f'note("{outer}.{name}"); {answer(inner, name, result, answers)}'
            if "unnamed" in does and "unnamed" not in arguments:
                does = does.replace("unnamed", re.findall(r"\w+", arguments)[-1])
            bodies.append(f"{result} Record_{inner}::{name}({arguments}) {const} noexcept {{ {does} }}")
        out.append("};")
    for inner, outer in INTERFACES.items():
        pointer = "mLayer" if outer == "ILayer" else "mImpl"
        fake = f"struct Fake_{outer} : public {outer}"
        out.append(f"{fake} {{ Record_{inner} record; Fake_{outer}() {{ {pointer} = &record; }} }};")
    out += bodies
    out.append("EXPORT char const* recorded_calls() { return calls.c_str(); }")
    for made in ("Builder", "Runtime"):
        out.append(f"EXPORT void* createInfer{made}_INTERNAL(void* log, int32_t) noexcept {{ "
                   f"logger = static_cast<ILogger*>(log); return new Fake_I{made}; }}")  # fmt: skip
    out.append("EXPORT void* createInferRefitter_INTERNAL(void*, void*, int32_t) noexcept { return nullptr; }")
    out.append("EXPORT IPluginRegistry* getBuilderPluginRegistry(EngineCapability) noexcept { return nullptr; }")
    out.append("EXPORT IPluginRegistry* getPluginRegistry() noexcept { return nullptr; }")
    header = (include / "NvOnnxParser.h").read_text()
    silent = "noexcept" if re.search(r"createNvOnnxParser_INTERNAL\([^)]*\)\s*noexcept", header) else ""
    out += ["using namespace nvonnxparser;", "struct RecordParser : public nvonnxparser::IParser {"]
    for result, name, arguments, const in virtuals(class_bodies(header)["IParser"]):
        does = f'note("IParser.{name}"); {answer("IParser", name, result)}'
        out.append(f"  {result} {name}({arguments}) {const} noexcept override {{ {does} }}")
    out.append(
        f"}};\nEXPORT void* createNvOnnxParser_INTERNAL(void*, void*, int) {silent} {{ return new RecordParser; }}"
    )
    out.append(f"EXPORT void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) {silent} {{ return nullptr; }}")
    out.append(f"EXPORT int getNvOnnxParserVersion() {silent} {{ return 1; }}")
    out.append("EXPORT bool initLibNvInferPlugins(void*, char const*) { return true; }")
    return "\n".join(out) + "\n"


def undefined(module):
    done = subprocess.run(["nm", "-D", "--undefined-only", str(module)], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in done.stdout.splitlines()]


def load(folder, version, work):
    """(tensorrt module, recording library or None)."""
    package = Path(folder) / version / "tensorrt_bindings"
    include, major = Path(folder) / version / "include", version.split(".")[0]
    recorder = None
    if (include / "NvInferImpl.h").is_file():
        source, library = work / "recorder.cpp", work / "recorder.so"
        source.write_text(recording_source(include))
        flags = ["-std=c++17", "-O0", "-w", "-fPIC", "-shared", f"-I{include}", f"-I{CUDA_STUB}"]
        subprocess.run(["g++", *flags, "-o", str(library), str(source)], check=True)
        recorder = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        recorder.recorded_calls.restype = ctypes.c_char_p
    wanted = [s for s in undefined(package / "tensorrt.so")
              if re.match(r"(create\w+_INTERNAL|get(Builder)?PluginRegistry|getNvOnnxParserVersion|initLibNvInferPlugins|_ZN\d+nv)", s)]  # fmt: skip # noqa: E501
    for index, name in enumerate(LIBRARIES):
        # The loader matches names: a library of that name that is loaded already serves the module.
        missing = [s for s in wanted if recorder is None or not hasattr(recorder, s)] if index == 0 else []
        (work / "stub.c").write_text("".join(f"void* {symbol}(void) {{ return 0; }}\n" for symbol in missing))
        path = work / f"lib{name}.so.{major}"
        subprocess.run(["cc", "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{path.name}", "-o", str(path),
                        str(work / "stub.c")], check=True)  # fmt: skip
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(package.parent))
    import tensorrt_bindings

    return tensorrt_bindings, recorder


def construct(trt):
    """Every Python class that the code derives from TensorRT's, and the calls that need no library."""
    from crispseg.engines.tensorrt import compat

    config = type("Config", (), {})()
    made = [compat.make_logger(trt, lambda *_: None), compat.make_profiler(trt, lambda *_: None)]
    made.append(compat.set_progress(trt, config, lambda *_: True))
    if hasattr(trt, "IInt8EntropyCalibrator2"):
        made.append(compat.set_calibration(trt, config, b"cache"))
    flags = compat.network_flags(trt)
    return {"classes": sum(item is not None for item in made), "flags": flags}


def flow(trt, recorder, work):
    """Build, open, run, profile and inspect through the real bindings; what was called."""
    from trt_support import Context

    from crispseg.engines.tensorrt import profile, run
    from crispseg.engines.tensorrt.build import BuildOptions, build_engine

    shapes = {"x": ((1, 3, 4, 4), (1, 3, 8, 8), (1, 3, 16, 16))}
    old = version_has_no_level(trt)
    (work / "ranges").write_bytes(b"cache")
    facts = []
    for precision, calibration in (("fp16", None), ("int8", work / "ranges")):
        if calibration is not None and not hasattr(trt, "IInt8EntropyCalibrator2"):
            continue
        more = {"timing_cache": work / "timing.cache", "opt_level": None if old else 3, "calibration": calibration}
        options = BuildOptions(precision=precision, workspace_mib=64, profiles=shapes, dla=1, **more)
        result = build_engine(b"model", options, what="net", trt=trt, floats=["conv"], progress=lambda *a, **k: None)
        facts.append(result.facts)
    engine = run.open_engine(result.plan, Context(), what="net", trt=trt, core=1)
    engine.set_shapes({"x": (1, 3, 8, 8)})
    import numpy as np

    times = profile.layer_times(engine, {"x": np.zeros((1, 3, 8, 8), np.float32)}, runs=2, warmup=1)
    assert times == [{"layer": "conv", "ms": 0.25, "share": 100.0}], times
    assert profile.summary(engine.inspect())["layers"] == 1
    assert engine.describe()["scratch_mib"] == 0.0
    engine.close()
    # Two contexts on one scratch memory, as the refiner's engine has them.
    engine = run.open_engine(result.plan, Context(), what="net", trt=trt, shared=True)
    other = engine.another()
    other.set_shapes({"x": (1, 3, 8, 8)})
    other.bind({"x": 256, "y": 512})
    engine.close()
    calls = recorder.recorded_calls().decode().split()
    return {"calls": len(calls), "different": len(set(calls)), "names": sorted(set(calls)), "builds": facts}


def version_has_no_level(trt):
    return not hasattr(trt.IBuilderConfig, "builder_optimization_level")


def main(folder, version):
    with tempfile.TemporaryDirectory() as work:
        trt, recorder = load(Path(folder), version, Path(work))
        result = {"version": trt.__version__, **construct(trt)}
        if recorder is not None:
            result.update(flow(trt, recorder, Path(work)))
        print(json.dumps(result), flush=True)
        # Objects of a library that is none must not be torn down by the interpreter in whatever order it likes.
        import os

        os._exit(0)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    main(*sys.argv[1:])
