"""Every TensorRT name, member, keyword and overridden method that the code uses, against eight releases."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorrt_names
from fake_tensorrt import VERSIONS

ROOM = Path(__file__).parents[2] / "crispseg" / "engines" / "tensorrt"
FILES = {path.name: path.read_text() for path in sorted(ROOM.glob("*.py"))}
TYPED = ("compat.py", "dla.py", "registry.py", "build.py", "timing.py", "run.py")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", TYPED)
def test_names_exist_where_they_are_used(name, version):
    assert tensorrt_names.problems(FILES[name], version) == []


@pytest.mark.parametrize("name", sorted(set(FILES) - set(TYPED)))
def test_no_other_file_touches_tensorrt(name):
    used = {
        owner for version in VERSIONS for owner, _ in tensorrt_names.check(FILES[name], version).seen if owner == ""
    }
    assert not used, f"{name} uses trt.*: add it to TYPED"


def test_enough_is_looked_at():
    seen = {pair for name in TYPED for pair in tensorrt_names.check(FILES[name], "10.13.3.9").seen}
    assert len(seen) > 70, len(seen)
    for pair in (("OnnxParser", "parse"), ("IExecutionContext", "execute_async_v3"), ("", "IProgressMonitor"),
                 ("IBuilderConfig", "set_timing_cache"), ("IPluginRegistry", "load_library")):  # fmt: skip
        assert pair in seen


BREAK = [
    # a guard that is gone: the path now runs where the name is missing
    ("compat.py", 'if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):', "if flags >= 0:", "11.0.0.114"),
    ("compat.py", 'if strong and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):', "if strong:", "8.6.1"),
    ("compat.py", 'if not hasattr(trt, "IProgressMonitor"):', "if report is None:", "8.5.3"),
    ("compat.py", 'if not hasattr(trt, "IInt8EntropyCalibrator2"):', "if not cache:", "11.4.0.106"),
    ("compat.py", 'if not hasattr(trt.ILayer, "precision"):', "if network is None:", "11.4.0.106"),
    ("compat.py", 'if not hasattr(trt.IBuilderConfig, "builder_optimization_level"):', "if level < 0:", "8.5.3"),
    ("compat.py", 'if hasattr(trt.ICudaEngine, "device_memory_size_v2"):', "if engine is None:", "11.0.0.114"),
    ("compat.py", 'if hasattr(trt, "ExecutionContextAllocationStrategy"):', "if engine is not None:", "8.6.1"),
    ("compat.py", 'if hasattr(trt, "ExecutionContextAllocationStrategy"):', "if engine is None:", "11.4.0.106"),
    ("compat.py", 'if hasattr(trt.IExecutionContext, "set_device_memory"):', "if nbytes >= 0:", "10.0.1"),
    ("compat.py", 'if hasattr(trt.OnnxParser, "supports_model_v2"):', "if model:", "10.0.1"),
    ("registry.py", 'if hasattr(trt.IPluginRegistry, "load_library"):', "if library:", "8.5.3"),
    ("registry.py", 'if hasattr(trt.IPluginRegistry, "get_creator"):', "if name:", "8.6.1"),
    ("compat.py", ' and hasattr(trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE")', "", "10.3.0"),
    # a guard with a typing mistake: the path never runs, or runs where it must not
    ("compat.py", 'if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):',
     'if not hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):', "11.4.0.106"),
    # wrong names, keywords, numbers of arguments
    ("compat.py", "config.set_memory_pool_limit(", "config.set_memory_pool_limits(", "8.5.3"),
    ("dla.py", "config.DLA_core = core", "config.dla_core = core", "10.16.1.11"),
    ("dla.py", "runtime.DLA_core = core", "runtime.dla_core = core", "8.5.3"),
    ("dla.py", "cores = builder.num_DLA_cores", "cores = builder.num_dla_cores", "10.16.1.11"),
    ("dla.py", "trt.BuilderFlag.GPU_FALLBACK", "trt.BuilderFlag.GPU_FALLBACKS", "8.6.1"),
    ("compat.py", "report_layer_time(self, layer_name: str, ms: float)", "report_layer_time(self, ms: float)", "8.6.1"),
    ("compat.py", "def step_complete(", "def step_completed(", "10.0.1"),
    ("run.py", "execute_async_v3(stream.handle)", "execute_async_v3(stream=stream.handle)", "8.5.3"),
    ("run.py", "self._execution.enqueue_emits_profile = True", "self._execution.engine = True", "8.5.3"),
    ("timing.py", "cache.combine(others, False)", "cache.combine(others)", "11.4.0.106"),
    ("build.py", "trt.OnnxParser(network, logger)", "trt.OnnxParser(logger)", "8.5.3"),
    ("build.py", "builder.build_serialized_network(", "builder.build_engine(", "10.0.1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "version"), BREAK, ids=[f"{b[0]}-{i}" for i, b in enumerate(BREAK)])
def test_the_check_sees_mistakes(name, old, new, version):
    assert FILES[name].count(old) >= 1, "the source changed: adapt the mutation"
    assert tensorrt_names.problems(FILES[name].replace(old, new), version) != []
