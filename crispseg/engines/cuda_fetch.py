"""Outputs of a refiner on the GPU as numpy arrays, for tests and `crispseg verify`; pipelines do not wait for them."""

from __future__ import annotations

import numpy as np

from crispseg.engines.cuda import Stream
from crispseg.engines.cuda_plan import DevicePlan
from crispseg.engines.native_check import Graph

_DTYPES = {"fp32": np.float32, "fp16": np.float16}


def fetch(stream: Stream, name: str, rows: np.ndarray, graph: Graph, plan: DevicePlan, address: int) -> np.ndarray:
    """Download one output and wait for it.

    Args:
        stream: of the device.
        name: output of the graph.
        rows: int32, real rows of each level, then the number of pixels found.
        graph: of the refiner.
        plan: its memory.
        address: of the output.

    Returns:
        A new array: uint8 [H,W], int32 [1], int32 [rows,columns], or float32 [rows,columns] for a matrix.
    """
    tensor = graph.tensors[name]
    n = int(rows[tensor.level])
    if tensor.kind == "count":
        return rows[tensor.level : tensor.level + 1].copy()
    if tensor.kind == "found":
        return rows[-1:].copy()
    if tensor.kind == "pixels":
        array = np.empty((graph.height, graph.width), np.uint8)
    elif tensor.kind == "matrix":
        array = np.empty((n, plan.place(name)[2]), _DTYPES[plan.types[name]])
    else:
        array = np.empty((n, tensor.columns or 2), np.int32)
    if not array.size:
        return array[:, : tensor.columns or 2].astype(np.float32 if tensor.kind == "matrix" else np.int32)
    if tensor.kind == "matrix":  # a slice of rows ends before the last row's stride does
        item, stride = array.itemsize, array.shape[1]
        whole = np.empty((n - 1) * stride + tensor.columns, array.dtype)
        stream.download(whole, address)
        stream.synchronize()
        step = (item * stride, item)
        return np.lib.stride_tricks.as_strided(whole, (n, tensor.columns), step).astype(np.float32)
    stream.download(array, address)
    stream.synchronize()
    return array
