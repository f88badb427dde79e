"""What is asked of an engine. The same record serves every backend."""

from __future__ import annotations

from dataclasses import dataclass

from crispseg.environment import usable_cpus
from crispseg.errors import InputError

BACKENDS = ("native", "onnxruntime")
PRECISIONS = ("fp32",)


@dataclass(frozen=True)
class EngineSpec:
    """Backend, execution provider (ONNX Runtime's name), threads (0 = all usable CPUs) and arithmetic precision."""

    backend: str = "native"
    provider: str = "CPUExecutionProvider"
    threads: int = 0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError("backend %r: expected %s" % (self.backend, " or ".join(BACKENDS)))
        if self.precision not in PRECISIONS:
            raise InputError("precision %r: expected %s" % (self.precision, " or ".join(PRECISIONS)))
        if type(self.threads) is not int or not 0 <= self.threads <= 1024:
            raise InputError("threads %r: expected an integer from 0 (all usable CPUs) to 1024" % (self.threads,))

    @property
    def thread_count(self) -> int:
        """The number of threads to use: ``threads``, or the CPUs that affinity and cgroup leave to this process."""
        return self.threads or usable_cpus()
