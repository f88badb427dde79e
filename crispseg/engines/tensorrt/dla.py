"""The DLA of a Jetson: a core of it for the layers that it can run, the GPU for the others. Not yet run on a device."""

from __future__ import annotations

from typing import Any

from crispseg.errors import EnvironmentMismatch


def build_for(trt: Any, builder: Any, config: Any, core: int) -> None:
    """Run on DLA core ``core``, with the GPU for what it cannot run. Raises EnvironmentMismatch without that core."""
    cores = builder.num_DLA_cores
    if not 0 <= core < cores:
        raise EnvironmentMismatch(
            "--dla %d: expected a core below %d, the number of DLA cores that TensorRT finds here; leave --dla out to "
            "use the GPU" % (core, cores)
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def quantises(trt: Any) -> bool:
    """Whether the DLA takes QuantizeLinear nodes. As long as there are calibrators it takes nothing else
    (NVIDIA/TensorRT#2222); a file with such nodes would run on the GPU without a word."""  # noqa: D209
    return not hasattr(trt, "IInt8EntropyCalibrator2")


def open_on(trt: Any, runtime: Any, core: int) -> None:
    """Engines that ``runtime`` opens run on this core; it takes core 0 unless told, whatever they were built for.

    Raises EnvironmentMismatch without that core.
    """
    cores = runtime.num_DLA_cores
    if not 0 <= core < cores:
        raise EnvironmentMismatch(
            "DLA core %d, for which the engine was built: TensorRT finds %d cores here; build it again with or without "
            "--dla" % (core, cores)
        )
    runtime.DLA_core = core
