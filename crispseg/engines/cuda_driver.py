"""The CUDA driver library: found, initialised, its functions called with errors turned into messages.

Nothing but ctypes and the driver (libcuda.so.1) is needed. $CRISPSEG_LIBCUDA names another library, for example the
emulated driver of the tests. Memory, streams and graphs on top of it: ``engines/cuda.py``.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any, Dict, List, Sequence

from crispseg.errors import EnvironmentMismatch, InputError

ENVIRONMENT = "CRISPSEG_LIBCUDA"
DEFAULT_LIBRARY = "libcuda.so.1"

_P, _D = c_void_p, c_ulonglong  # handle or host pointer; CUdeviceptr
_PROTOTYPES: Dict[str, List[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [_P],
    "cuGetErrorName": [c_int, _P],
    "cuGetErrorString": [c_int, _P],
    "cuDeviceGetCount": [_P],
    "cuDeviceGet": [_P, c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetAttribute": [_P, c_int, c_int],
    "cuDeviceTotalMem_v2": [_P, c_int],
    "cuDevicePrimaryCtxRetain": [_P, c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuCtxSetCurrent": [_P],
    "cuCtxSynchronize": [],
    "cuMemGetInfo_v2": [_P, _P],
    "cuMemAlloc_v2": [_P, c_size_t],
    "cuMemFree_v2": [_D],
    "cuMemHostAlloc": [_P, c_size_t, c_uint],
    "cuMemFreeHost": [_P],
    "cuMemcpyHtoDAsync_v2": [_D, _P, c_size_t, _P],
    "cuMemcpyDtoHAsync_v2": [_P, _D, c_size_t, _P],
    "cuMemcpyDtoDAsync_v2": [_D, _D, c_size_t, _P],
    "cuMemcpy2DAsync_v2": [_P, _P],
    "cuMemsetD8Async": [_D, ctypes.c_ubyte, c_size_t, _P],
    "cuStreamCreate": [_P, c_uint],
    "cuStreamDestroy_v2": [_P],
    "cuStreamSynchronize": [_P],
    "cuStreamQuery": [_P],
    "cuStreamWaitEvent": [_P, _P, c_uint],
    "cuStreamBeginCapture_v2": [_P, c_int],
    "cuStreamEndCapture": [_P, _P],
    "cuEventCreate": [_P, c_uint],
    "cuEventDestroy_v2": [_P],
    "cuEventRecord": [_P, _P],
    "cuEventRecordWithFlags": [_P, _P, c_uint],
    "cuEventSynchronize": [_P],
    "cuEventQuery": [_P],
    "cuEventElapsedTime": [_P, _P, _P],
    "cuGraphInstantiateWithFlags": [_P, _P, c_ulonglong],
    "cuGraphUpload": [_P, _P],
    "cuGraphLaunch": [_P, _P],
    "cuGraphGetNodes": [_P, _P, _P],
    "cuGraphExecDestroy": [_P],
    "cuGraphDestroy": [_P],
}
OUT_OF_MEMORY, NOT_READY = 2, 600
# A kernel did what is not allowed; every call of the process fails from then on: CUDA_ERROR_ILLEGAL_ADDRESS,
# LAUNCH_TIMEOUT, ASSERT, HARDWARE_STACK_ERROR .. LAUNCH_FAILED.
LOST = (700, 702, 710, 714, 715, 716, 717, 718, 719)
LOST_ADVICE = (
    "a kernel failed, and with it the GPU is lost for this process: start again, on a GPU of 9.0 with "
    "CRISPSEG_WGMMA=0, or use --backend native"
)

_libraries: Dict[str, ctypes.CDLL] = {}


def library_name() -> str:
    """The driver library in force."""
    return os.environ.get(ENVIRONMENT) or DEFAULT_LIBRARY


def library(name: str = "") -> ctypes.CDLL:
    """The driver library, initialised; loaded once. Raises EnvironmentMismatch when there is none, or no device."""
    name = name or library_name()
    driver = _libraries.get(name)
    if driver is not None:
        return driver
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        raise EnvironmentMismatch(
            "CUDA driver: expected %s, found none (%s); install NVIDIA's driver (in a container: --gpus all or "
            "--runtime nvidia), or use --backend native" % (name, error)
        ) from None
    call(driver, "cuInit", 0)
    _libraries[name] = driver
    return driver


def call(driver: ctypes.CDLL, name: str, *arguments: Any, accept: Sequence[int] = ()) -> int:
    """Call a driver function; returns its status when it is 0 or one of ``accept``, raises otherwise."""
    try:
        function = getattr(driver, name)
    except AttributeError:
        raise EnvironmentMismatch(
            "CUDA driver: expected %s, which this driver lacks; update it to CUDA 11.4 or newer" % name
        ) from None
    if function.argtypes is None:
        function.argtypes, function.restype = _PROTOTYPES[name], c_int
    status = function(*arguments)
    if status and status not in accept:
        raise _error(driver, name, status)
    return status


def _error(driver: ctypes.CDLL, function: str, status: int) -> Exception:
    texts = []
    for getter in ("cuGetErrorName", "cuGetErrorString"):
        text = c_char_p()
        lookup = getattr(driver, getter, None)
        if lookup is not None and lookup(c_int(status), byref(text)) == 0 and text.value:
            texts.append(text.value.decode("utf-8", "replace"))
    what = "CUDA driver: %s: %s" % (function, ": ".join(texts) or "status %d" % status)
    if status == OUT_OF_MEMORY:
        return InputError(what + "; export the bundle with a smaller capacity, or close other programs on the GPU")
    if function == "cuInit" or status in (3, 4, 100, 101):  # not initialised, shut down, no device, bad device
        return EnvironmentMismatch(what + "; check nvidia-smi (on Jetson: tegrastats), or use --backend native")
    if status in LOST:
        return EnvironmentMismatch("%s; %s" % (what, LOST_ADVICE))
    return EnvironmentMismatch(what + "; the GPU work cannot go on, start the program again")
