"""What is asked of an engine. The same record serves every backend."""

from __future__ import annotations

from dataclasses import dataclass

from crispseg.environment import usable_cpus
from crispseg.errors import InputError

BACKENDS = ("native", "onnxruntime", "cuda", "tensorrt")
GPU_BACKENDS = ("cuda", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8")
MAX_CAPACITY = 2**31 - 1


def usual_precision(backend: str) -> str:
    """What a backend computes in when nothing is asked for."""
    return "fp16" if backend in GPU_BACKENDS else "fp32"


@dataclass(frozen=True)
class EngineSpec:
    """What runs where.

    ``backend``; ``provider`` (ONNX Runtime's name); ``threads`` (0 = all usable CPUs); ``precision`` of the arithmetic;
    ``device``: number of the GPU; ``capacity``: most refined pixels a frame, 0 = the bundle's; ``refiner_engine``: the
    refiner as a TensorRT engine too, instead of the CUDA kernels themselves.
    """

    backend: str = "native"
    provider: str = "CPUExecutionProvider"
    threads: int = 0
    precision: str = "fp32"
    device: int = 0
    capacity: int = 0
    refiner_engine: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError("backend %r: expected one of %s" % (self.backend, ", ".join(BACKENDS)))
        if self.precision not in PRECISIONS:
            raise InputError("precision %r: expected one of %s" % (self.precision, ", ".join(PRECISIONS)))
        if self.precision == "fp16" and self.backend not in GPU_BACKENDS:
            raise InputError(
                "precision %s: backend %s computes in fp32 or int8; name --backend %s for it"
                % (self.precision, self.backend, " or ".join(GPU_BACKENDS))
            )
        if self.refiner_engine and self.backend != "tensorrt":
            raise InputError("--refiner-engine: expected --backend tensorrt, found %s" % self.backend)
        for name, most in (("threads", 1024), ("device", 1023), ("capacity", MAX_CAPACITY)):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise InputError("%s %r: expected an integer from 0 to %d" % (name, value, most))

    @property
    def thread_count(self) -> int:
        """The number of threads to use: ``threads``, or the CPUs that affinity and cgroup leave to this process."""
        return self.threads or usable_cpus()
