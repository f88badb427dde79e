"""Opens a bundle on the GPU: device, kernels, base, refiner. What is missing is named with the command that gets it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, List, Tuple

from crispseg.bundle import Bundle, NetInfo
from crispseg.bundle_calibration import calibrated, network_file
from crispseg.engines import cuda, cuda_kernels, cuda_refiner
from crispseg.engines.cuda_labels import CudaLabels
from crispseg.engines.spec import EngineSpec
from crispseg.runtime.gpu_pipeline import GpuPipeline
from crispseg.runtime.pipeline import check_net, check_refiner


def open_gpu_pipeline(bundle: Bundle, net: NetInfo, spec: EngineSpec, refine: bool, fit: str) -> GpuPipeline:
    """A pipeline on ``spec.device``.

    Args:
        bundle: what runs.
        net: its base, or its baseline.
        spec: backend "cuda" (base in ONNX Runtime's CUDA provider) or "tensorrt" (base as an engine that `crispseg
            build` made); precision of the refiner, and of the engine; whether the refiner is an engine too.
        refine: False = the dense network alone.
        fit: "auto", "resize" or "letterbox".

    Raises:
        EnvironmentMismatch: no driver, device, kernels, provider or engine.
        InputError, BundleError, UnsupportedOp.
    """
    context = cuda.open_device(spec.device)
    opened: List[Any] = []
    try:
        opened.append(cuda_kernels.open_kernels(context, bundle))
        kernels = opened[0]
        opened.append(context.stream())
        base = open_base(bundle, net, spec, context, opened[1])
        opened.append(base)
        check_net(bundle, net, base)
        logits: Tuple[int, int, int] = (len(bundle.classes), net.logits_height, net.logits_width)
        size = (bundle.height, bundle.width)
        labels = partial(CudaLabels, kernels, size, logits, net.upsample, base.output_type)
        if refine and bundle.refiner is not None:
            refiner: Any = open_refiner(bundle, spec, kernels, base.output_type)
            opened.append(refiner)
            check_refiner(bundle, refiner)
        else:
            refiner = labels()
            opened.append(refiner)
        return GpuPipeline(bundle, net, context, kernels, opened[1], base, refiner, labels, fit)
    except BaseException:
        for thing in reversed(opened):
            thing.close()
        raise


def open_refiner(bundle: Bundle, spec: EngineSpec, kernels: cuda_kernels.Kernels, logits_type: str) -> Any:
    """The refiner of a GPU backend: our kernels, or on request TensorRT's engine with them as plugins.

    Raises:
        EnvironmentMismatch: no engine was built.
        BundleError, UnsupportedOp, InputError: also int8 with no calibration of this refiner.
    """
    if spec.refiner_engine:
        from crispseg.engines.tensorrt import refiner

        return refiner.load(bundle, kernels.context, spec.precision, logits_type)
    assert bundle.refiner is not None
    if spec.backend == "tensorrt" and spec.precision == "int8" and not calibrated(bundle, "refiner"):
        spec = replace(spec, precision="fp16")  # an int8 base beside a refiner without calibration
    name = network_file(bundle, "refiner", spec.precision)
    return cuda_refiner.load(bundle.file(name), kernels, spec, logits_type)


def open_base(bundle: Bundle, net: NetInfo, spec: EngineSpec, context: cuda.Context, stream: cuda.Stream) -> Any:
    """The dense network of a GPU backend: ``enqueue(stream, input_address, output_address)`` and its ports.

    Raises:
        EnvironmentMismatch: ONNX Runtime has no CUDA provider, or no engine was built.
    """
    role = "base" if net is bundle.base else "baseline"
    if spec.backend == "cuda":
        from crispseg.engines import cuda_base, ort_cuda

        return ort_cuda.load(cuda_base.network_file(bundle, role, spec.precision), context, stream)
    from crispseg.engines.device_base import TensorRTBase
    from crispseg.engines.tensorrt import run as tensorrt_run

    return TensorRTBase(tensorrt_run.load(bundle, role, context, precision=spec.precision))
