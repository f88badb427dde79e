"""Finds, loads and describes the native library (C ABI: native/include/crispseg.h)."""

from __future__ import annotations

import ctypes
import sys
import weakref
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, List, Optional

from crispseg.errors import CrispsegError, EnvironmentMismatch, InputError
from crispseg.plugins.shared_library import library_places, open_library

ABI_VERSION = 3
ENVIRONMENT = "CRISPSEG_LIBRARY"
BUILD_COMMAND = (
    "cmake -S crispseg/plugins -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build, "
    f"then set {ENVIRONMENT}=build/libcrispseg.so (or install the package with pip)"
)

OK, BAD_ARGUMENT, OUT_OF_MEMORY, UNSUPPORTED, INTERNAL = 0, -1, -2, -3, -4
UPSAMPLE = {"nearest": 0, "bilinear": 1, "bilinear_corners": 2}
EXTENT = {"active": 0, "image": 1}


class ConvArguments(Structure):
    """``cs_conv``: one convolution with its epilogue. Pointers are plain addresses; 0 or None = absent."""

    _fields_ = [
        ("x", c_void_p),
        ("ldx", c_int64),
        ("n_in", c_int32),
        ("map", c_void_p),
        ("order", c_void_p),
        ("n_out", c_int32),
        ("K", c_int32),
        ("cin", c_int32),
        ("cout", c_int32),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("residual", c_void_p),
        ("ldr", c_int64),
        ("relu", c_int32),
        ("y", c_void_p),
        ("ldy", c_int64),
        ("scale", c_void_p * 2),
        ("shift", c_void_p * 2),
        ("z", c_void_p * 2),
        ("ldz", c_int64 * 2),
        ("x2", c_void_p),
        ("ldx2", c_int64),
        ("cin2", c_int32),
        ("weight2", c_void_p),
    ]


class ConvInt8Arguments(Structure):
    """``cs_conv_int8``: ``conv`` with byte addresses and strides where rows are bytes."""

    _fields_ = [
        ("conv", ConvArguments),
        ("scale", c_void_p),
        ("zero", c_int32),
        ("step", c_float * 3),
        ("out_zero", c_int32 * 3),
    ]


class GateArguments(Structure):
    """``cs_gate``: weights of the gated ensembler."""

    _fields_ = [("C", c_int), ("hidden", c_int)] + [(f"{kind}{i}", c_void_p) for i in range(1, 5) for kind in "wb"]


_P = c_void_p
# name: (result, arguments). Context and data pointers are plain addresses.
PROTOTYPES = {
    "cs_abi_version": (c_int, []),
    "cs_last_error": (c_char_p, []),
    "cs_build_info": (c_char_p, []),
    "cs_create": (_P, [c_int, c_char_p]),
    "cs_destroy": (None, [_P]),
    "cs_isa": (c_char_p, [_P]),
    "cs_threads": (c_int, [_P]),
    "cs_scratch_bytes": (c_size_t, [_P]),
    # ctx, logits, C, h, w, H, W, upsample, threshold, capacity, labels, confidence, coords, count, found
    "cs_select_pixels": (c_int, [_P, _P] + [c_int] * 6 + [c_float, c_int64] + [_P] * 5),
    # ctx, image, H, W, coords, n, mean, std, bgr, x, ldx
    "cs_pixel_colours": (c_int, [_P, _P, c_int, c_int, _P, c_int32, _P, _P, c_int, _P, c_int64]),
    # ctx, logits, C, h, w, H, W, upsample, coords, n, y, ldy
    "cs_logits_at": (c_int, [_P, _P] + [c_int] * 6 + [_P, c_int32, _P, c_int64]),
    "cs_softmax_rows": (c_int, [_P, _P, c_int64, c_int32, c_int, _P, c_int64]),
    "cs_submanifold_map": (c_int, [_P, _P, c_int32, c_int, c_int, _P]),
    # ctx, coords, n, H, W, extent, coords_out, count_out, down, up
    "cs_down_map": (c_int, [_P, _P, c_int32, c_int, c_int, c_int, _P, _P, _P, _P]),
    "cs_plan_map": (c_int, [_P, _P, c_int32, c_int, _P]),
    "cs_packed_bytes": (c_size_t, [_P, c_int, c_int, c_int]),
    "cs_pack_weight": (c_int, [_P, _P, c_int, c_int, c_int, _P]),
    "cs_sparse_conv": (c_int, [_P, POINTER(ConvArguments)]),
    "cs_packed_bytes_int8": (c_size_t, [_P, c_int, c_int, c_int]),
    "cs_pack_weight_int8": (c_int, [_P, _P, c_int, c_int, c_int, _P]),
    "cs_sparse_conv_int8": (c_int, [_P, POINTER(ConvInt8Arguments)]),
    # ctx, x, ldx, n, c, step, zero, q, ldq
    "cs_quantise_rows": (c_int, [_P, _P, c_int64, c_int32, c_int, c_float, c_int, _P, c_int64]),
    "cs_int8_kernels": (c_char_p, [_P]),
    # ctx, coords, n, H, W, tile, tiles_in, tiles_out, count, pairs
    "cs_winograd_plan": (c_int, [_P, _P, c_int32, c_int, c_int, c_int, _P, _P, _P, _P]),
    "cs_winograd_bytes": (c_size_t, [_P, c_int, c_int, c_int]),
    "cs_winograd_pack": (c_int, [_P, _P, c_int, c_int, c_int, _P]),
    # ctx, conv, tile, tiles_in, tiles_out, tiles
    "cs_winograd_conv": (c_int, [_P, POINTER(ConvArguments), c_int, _P, _P, c_int32]),
    # ctx, yi, ldi, yo, ldo, n, gate, ye, lde
    "cs_ensemble_gated": (c_int, [_P, _P, c_int64, _P, c_int64, c_int32, POINTER(GateArguments), _P, c_int64]),
    # ctx, yi, ldi, yo, ldo, n, C, ye, lde
    "cs_ensemble_entropy": (c_int, [_P, _P, c_int64, _P, c_int64, c_int32, c_int, _P, c_int64]),
    # ctx, labels, confidence, H, W, coords, n, logits, ld, C
    "cs_scatter_labels": (c_int, [_P, _P, _P, c_int, c_int, _P, c_int32, _P, c_int64, c_int]),
    "cs_fma_loop": (c_double, [_P, c_int64]),
}

_library: Optional[ctypes.CDLL] = None


def _file_name() -> str:
    return "libcrispseg.dylib" if sys.platform == "darwin" else "libcrispseg.so"


def candidates() -> List[Path]:
    """Places where the library may lie: $CRISPSEG_LIBRARY alone when set, else every directory of the package."""
    return library_places(ENVIRONMENT, _file_name())


def load() -> ctypes.CDLL:
    """The library with its prototypes declared; loaded once per process.

    Raises:
        EnvironmentMismatch: no library, one that does not load, or one of another ABI version.
    """
    global _library
    if _library is None:
        places = candidates()
        _library = open_library("native library", places, "cs_abi_version", ABI_VERSION, PROTOTYPES, BUILD_COMMAND)
    return _library


def last_error() -> str:
    """Text of the last failure on this thread."""
    return (load().cs_last_error() or b"").decode("utf-8", "replace")


def check(rc: int) -> None:
    """Raises for a negative status.

    Raises:
        InputError: CS_BAD_ARGUMENT.
        EnvironmentMismatch: CS_UNSUPPORTED.
        MemoryError: CS_OUT_OF_MEMORY.
        CrispsegError: anything else.
    """
    if rc == OK:
        return
    text = last_error()
    if rc == BAD_ARGUMENT:
        raise InputError(text)
    if rc == UNSUPPORTED:
        raise EnvironmentMismatch(text)
    if rc == OUT_OF_MEMORY:
        raise MemoryError(text)
    raise CrispsegError(f"native library: status {rc}: {text}")


class Native:
    """A context of the native library: worker threads, instruction set, scratch memory.

    Use it from one thread at a time. ``handle`` is the first argument of the C functions; ``library`` holds them.

    Args:
        threads: worker threads, >= 1.
        isa: "" = the best of this CPU (or $CRISPSEG_ISA), "avx512", "avx2", "generic".

    Raises:
        EnvironmentMismatch: no library, or the instruction set is not available.
        InputError: threads out of range.
    """

    def __init__(self, threads: int = 1, isa: str = "") -> None:
        if threads < 1:
            raise InputError(f"threads = {threads}, expected 1 or more")
        self.library = load()
        self.handle: Any = self.library.cs_create(threads, isa.encode("utf-8"))
        if not self.handle:
            raise EnvironmentMismatch(last_error())
        self._finalizer = weakref.finalize(self, self.library.cs_destroy, self.handle)

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        return self.library.cs_isa(self.handle).decode("ascii")

    @property
    def threads(self) -> int:
        """Number of threads, the calling one included."""
        return self.library.cs_threads(self.handle)

    @property
    def scratch_bytes(self) -> int:
        """Memory that the context holds now."""
        return self.library.cs_scratch_bytes(self.handle)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls ``name(handle, *arguments)`` and raises when it fails (see ``check``)."""
        if not self.handle:
            raise CrispsegError(f"{name}: the native context is closed")
        check(getattr(self.library, name)(self.handle, *arguments))

    def close(self) -> None:
        """Ends the worker threads and frees the scratch memory. May be called twice."""
        self._finalizer()
        self.handle = None

    def __enter__(self) -> Native:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def available_isas() -> List[str]:
    """Instruction sets that both the library and this CPU have, best first."""
    library = load()
    found = []
    for name in ("avx512", "avx2", "generic"):
        handle = library.cs_create(1, name.encode("ascii"))
        if handle:
            found.append(name)
            library.cs_destroy(handle)
    return found
