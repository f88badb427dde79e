"""Finds, loads and describes the CUDA library (C ABI: cuda/include/crispseg_cuda.h).

The library itself needs no CUDA: it opens the driver when a context is created. Device memory, streams and current
contexts belong to the caller (``engines/cuda.py``); this module only declares functions and turns failures into errors.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import List, Optional, Tuple

import crispseg.plugins
from crispseg.errors import CrispsegError, EnvironmentMismatch, InputError
from crispseg.plugins.shared_library import library_places, open_library

ABI_VERSION = 2
ENVIRONMENT = "CRISPSEG_CUDA_LIBRARY"
BUILD_COMMAND = (
    "cmake -S crispseg/plugins -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build, "
    f"then set {ENVIRONMENT}=build/libcrispseg_cuda.so (or install the package with pip, on Linux)"
)

OK, BAD_ARGUMENT, NO_DRIVER, UNSUPPORTED, DRIVER_ERROR, INTERNAL = 0, -1, -2, -3, -4, -5
UPSAMPLE = {"nearest": 0, "bilinear": 1, "bilinear_corners": 2}
EXTENT = {"active": 0, "image": 1}
F32, F16, I8 = 0, 1, 2
TYPES = {"float32": F32, "float16": F16, "int8": I8}


class Features(Structure):
    """``csg_features``: the columns of PixelFeatures. ``kinds``: 0 = rgb, 1 = xy, 2 = p, 3 = p > value."""

    _fields_ = [
        ("features", c_int32),
        ("kinds", c_int32 * 8),
        ("values", c_float * 8),
        ("mean", c_float * 3),
        ("std", c_float * 3),
        ("bgr", c_int32),
    ]


class Conv(Structure):
    """``csg_conv``: one convolution with its epilogue. d_*: device addresses; 0 or None = absent."""

    _fields_ = [
        ("type", c_int),
        ("d_x", c_void_p),
        ("ldx", c_int64),
        ("d_map", c_void_p),
        ("d_order", c_void_p),
        ("d_count", c_void_p),
        ("capacity", c_int32),
        ("K", c_int32),
        ("cin", c_int32),
        ("cout", c_int32),
        ("d_weight", c_void_p),
        ("d_bias", c_void_p),
        ("residual_type", c_int),
        ("d_residual", c_void_p),
        ("ldr", c_int64),
        ("relu", c_int32),
        ("y_type", c_int),
        ("d_y", c_void_p),
        ("ldy", c_int64),
        ("d_scale", c_void_p * 2),
        ("d_shift", c_void_p * 2),
        ("z_type", c_int * 2),
        ("d_z", c_void_p * 2),
        ("ldz", c_int64 * 2),
        ("d_dequant", c_void_p),
        ("y_quant", c_float),
        ("z_quant", c_float * 2),
        ("d_workspace", c_void_p),
        ("workspace_bytes", c_size_t),
        ("portable", c_int32),
    ]


class Fit(Structure):
    """``csg_fit``: where and how a frame is put into the network's picture."""

    _fields_ = [
        ("top", c_int32),
        ("left", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("mean", c_float * 3),
        ("std", c_float * 3),
        ("pad", c_float * 3),
        ("bgr", c_int32),
    ]


_P, _I = c_void_p, c_int
_CALL = [c_void_p, c_void_p]  # context, stream
_WORK = [c_void_p, c_size_t]  # workspace, its bytes
# name: (result, arguments). Context, stream and device pointers are plain addresses.
PROTOTYPES = {
    "csg_abi_version": (c_int, []),
    "csg_last_error": (c_char_p, []),
    "csg_build_info": (c_char_p, []),
    "csg_embedded_image": (c_void_p, [POINTER(c_size_t)]),
    "csg_create": (c_void_p, [c_void_p, c_size_t]),
    "csg_destroy": (None, [c_void_p]),
    "csg_compute_capability": (c_int, [c_void_p]),
    "csg_kernel_report": (c_char_p, [c_void_p]),
    # type, logits, C, h, w, not_finite
    "csg_check_logits": (_I, _CALL + [_I, _P] + [_I] * 3 + [_P]),
    "csg_select_workspace": (c_size_t, [_I, _I]),
    # type, logits, C, h, w, H, W, upsample, threshold, capacity, labels, confidence, coords, count, found
    "csg_select_pixels": (_I, _CALL + [_I, _P] + [_I] * 6 + [c_float, c_int32] + [_P] * 5 + _WORK),
    # image, H, W, coords, count, capacity, yi, ldyi, C, features, type, x, ldx
    "csg_pixel_features": (
        _I,
        _CALL + [_P, _I, _I, _P, _P, c_int32, _P, c_int64, _I, POINTER(Features), _I, _P, c_int64],
    ),
    # type, logits, C, h, w, H, W, upsample, coords, count, capacity, y, ldy
    "csg_logits_at": (_I, _CALL + [_I, _P] + [_I] * 6 + [_P, _P, c_int32, _P, c_int64]),
    "csg_map_workspace": (c_size_t, [_I, _I]),
    # coords, count, capacity, H, W, map
    "csg_submanifold_map": (_I, _CALL + [_P, _P, c_int32, _I, _I, _P] + _WORK),
    "csg_down_capacity": (c_int32, [c_int32, _I, _I]),
    # coords, count, capacity, H, W, extent, capacity_out, coords_out, count_out, down, up
    "csg_down_map": (_I, _CALL + [_P, _P, c_int32, _I, _I, _I, c_int32] + [_P] * 4 + _WORK),
    # coords, count, capacity, H, W, order
    "csg_parity_order": (_I, _CALL + [_P, _P, c_int32, _I, _I, _P] + _WORK),
    "csg_packed_bytes": (c_size_t, [_I] * 4),
    "csg_pack_weight": (_I, [_I, _P, _I, _I, _I, _P, _P]),
    "csg_conv_workspace": (c_size_t, [_P, POINTER(Conv)]),
    "csg_sparse_conv": (_I, _CALL + [POINTER(Conv)]),
    # yi, ldi, yo_type, yo, ldo, count, capacity, C, hidden, gate, ye, lde
    "csg_ensemble_gated": (
        _I,
        _CALL + [_P, c_int64, _I, _P, c_int64, _P, c_int32, _I, _I, _P, _P, c_int64],
    ),
    "csg_ensemble_entropy": (_I, _CALL + [_P, c_int64, _I, _P, c_int64, _P, c_int32, _I, _P, c_int64]),
    # labels, confidence, H, W, coords, count, capacity, logits, ld, C
    "csg_scatter_labels": (_I, _CALL + [_P, _P, _I, _I, _P, _P, c_int32, _P, c_int64, _I]),
    "csg_resize_workspace": (c_size_t, [_I] * 4),
    # frame, H0, W0, fit, type, out, h, w, small
    "csg_prepare_frame": (_I, _CALL + [_P, _I, _I, POINTER(Fit), _I, _P, _I, _I, _P] + _WORK),
    # map, H, W, top, left, rows, columns, out, H0, W0
    "csg_to_frame": (_I, _CALL + [_P] + [_I] * 6 + [_P, _I, _I]),
    # frame, labels, H, W, palette, colours, alpha, out
    "csg_overlay": (_I, _CALL + [_P, _P, _I, _I, _P, _I, c_float, _P]),
    # from, x, ldx, to, y, ldy, count, capacity, columns, quant
    "csg_convert_rows": (_I, _CALL + [_I, _P, c_int64, _I, _P, c_int64, _P, c_int32, _I, c_float]),
}

_library: Optional[Tuple[str, ctypes.CDLL]] = None


def candidates() -> List[Path]:
    """Places where the library may lie: $CRISPSEG_CUDA_LIBRARY alone when set, else every directory of the package."""
    return library_places(ENVIRONMENT, "libcrispseg_cuda.so")


def kernel_folder() -> Path:
    """Folder of the kernel sources (``kernels.cu`` and what it includes), for NVRTC.

    Raises:
        EnvironmentMismatch: the installation lacks them.
    """
    places = [Path(folder) / "cuda" / "kernels" for folder in crispseg.plugins.__path__]
    for place in places:
        if (place / "kernels.cu").is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise EnvironmentMismatch(f"kernels.cu: expected in {looked}, found none; install the package again with pip")


def load() -> ctypes.CDLL:
    """The library with its prototypes declared; loaded once. No driver and no GPU is needed for this.

    Raises:
        EnvironmentMismatch: not Linux, no library, one that does not load, or one of another ABI version.
    """
    global _library
    places = candidates()
    key = os.pathsep.join(map(str, places))
    if _library is not None and _library[0] == key:
        return _library[1]
    if not sys.platform.startswith("linux"):
        raise EnvironmentMismatch(f"CUDA library: expected Linux, found {sys.platform}; use --backend native")
    library = open_library("CUDA library", places, "csg_abi_version", ABI_VERSION, PROTOTYPES, BUILD_COMMAND)
    _library = (key, library)
    return library


def last_error() -> str:
    """Text of the last failure on this thread."""
    return (load().csg_last_error() or b"").decode("utf-8", "replace")


def check(rc: int) -> None:
    """Raises for a negative status.

    Raises:
        InputError: CSG_BAD_ARGUMENT.
        EnvironmentMismatch: CSG_NO_DRIVER, CSG_UNSUPPORTED, CSG_DRIVER_ERROR.
        CrispsegError: anything else.
    """
    if rc == OK:
        return
    text = last_error()
    if rc == BAD_ARGUMENT:
        raise InputError(text)
    if rc in (NO_DRIVER, UNSUPPORTED, DRIVER_ERROR):
        raise EnvironmentMismatch(text)
    raise CrispsegError(f"CUDA library: status {rc}: {text}")


def create(image: Optional[bytes] = None) -> int:
    """A context on the current CUDA context, from a kernel image (None = the one inside the library).

    Returns:
        The address that the C functions take first; give it back with ``csg_destroy``.

    Raises:
        EnvironmentMismatch: no driver, no image, or an image that does not belong to this device or this version.
    """
    library = load()
    handle = library.csg_create(image, len(image) if image is not None else 0)
    if not handle:
        raise EnvironmentMismatch(last_error())
    return int(handle)


def embedded_image() -> Optional[bytes]:
    """The kernel image inside the library, or None when it was built without nvcc."""
    size = c_size_t()
    address = load().csg_embedded_image(ctypes.byref(size))
    return ctypes.string_at(address, size.value) if address else None
