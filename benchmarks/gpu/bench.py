"""Device memory, graphs and times for the sections, on top of ``crispseg.engines.cuda`` and our kernels."""

from __future__ import annotations

import ctypes
import statistics
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from gpu.settings import IMAGE, Settings

F32, F16, I8 = 0, 1, 2


def summary(times_ms: Sequence[float]) -> Dict[str, float]:
    """Median, 10th and 90th percentile of times, ms."""
    low, high = np.percentile(np.asarray(times_ms, np.float64), (10, 90))
    return {"median": round(statistics.median(times_ms), 5), "p10": round(float(low), 5), "p90": round(float(high), 5),
            "runs": len(times_ms)}  # fmt: skip


class Bench:
    """The device, our kernels on it, one stream."""

    def __init__(self, settings: Settings) -> None:
        from crispseg.engines import cuda, cuda_kernels
        from crispseg.plugins import cuda_loader

        self.settings = settings
        self.context = cuda.open_device()
        image = settings.folder / IMAGE  # of an emulated driver; else it is linked into the library
        self.kernels = cuda_kernels.Kernels(self.context, image.read_bytes() if image.is_file() else None)
        self.stream = self.context.stream()
        self._upload = cuda.upload_now
        self._loader = cuda_loader
        self._kept: List[Any] = []  # buffers live as long as the bench: graphs hold their addresses

    def put(self, array: np.ndarray) -> int:
        """Device address of a copy of ``array``."""
        self._kept.append(self._upload(self.context, np.ascontiguousarray(array)))
        return int(self._kept[-1].address)

    def room(self, nbytes: int, value: int = 0) -> int:
        """Device memory filled with a byte."""
        buffer = self.context.alloc(max(1, nbytes))
        self._kept.append(buffer)
        self.stream.fill(buffer.address, value, max(1, nbytes))
        self.stream.synchronize()
        return int(buffer.address)

    def get(self, address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Copy from the device; waits."""
        array = self.context.pinned(tuple(shape), dtype)
        if array.nbytes:
            self.stream.download(array, address)
        self.stream.synchronize()
        return np.array(array)

    def free(self) -> None:
        """Free all memory that ``put`` and ``room`` gave."""
        self.context.synchronize()
        for buffer in self._kept:
            buffer.close()
        self._kept = []

    def call(self, name: str, *arguments: Any) -> None:
        """An op of the library on the stream."""
        self.kernels.call(name, self.stream.handle, *arguments)

    def graph(self, work: Callable[[], Any]) -> Any:
        """``work`` captured. It runs once before, so that everything lazy has happened."""
        work()
        self.stream.synchronize()
        with self.stream.capture() as graphs:
            work()
        return graphs[0]

    def times(self, launch: Callable[[], Any], runs: Optional[int] = None) -> List[float]:
        """Milliseconds on the device of each run of ``launch`` (a graph's launch), after the warm-up."""
        start, end = self.context.event(), self.context.event()
        found = []
        for index in range(self.settings.warmup + (runs or self.settings.replays)):
            self.stream.record(start)
            launch()
            self.stream.record(end)
            end.synchronize()
            if index >= self.settings.warmup:
                found.append(end.since(start))
        return found

    def graph_times(self, work: Callable[[], Any], inner: int = 1, runs: Optional[int] = None) -> List[float]:
        """Times of one ``work`` in a graph that holds ``inner`` of them."""
        graph = self.graph(lambda: [work() for _ in range(inner)])
        found = [ms / inner for ms in self.times(lambda: graph.launch(self.stream), runs)]
        graph.close()
        return found

    def host_times(self, launch: Callable[[], Any], runs: Optional[int] = None) -> List[float]:
        """Milliseconds that the host spends in ``launch``; the device is idle before each."""
        found = []
        for index in range(self.settings.warmup + (runs or self.settings.replays)):
            start = time.perf_counter()
            launch()
            stop = time.perf_counter()
            self.stream.synchronize()
            if index >= self.settings.warmup:
                found.append(1000 * (stop - start))
        return found

    def pack(self, kind: int, weight: np.ndarray, scales: Optional[np.ndarray] = None) -> int:
        """Packed weights [K, cin, cout] on the device."""
        weight = np.ascontiguousarray(weight, np.float32)
        library = self.kernels.library
        packed = np.zeros(library.csg_packed_bytes(kind, *weight.shape), np.uint8)
        status = library.csg_pack_weight(
            kind, weight.ctypes.data, *weight.shape, packed.ctypes.data, None if scales is None else scales.ctypes.data
        )
        if status:
            raise RuntimeError("csg_pack_weight: status %d: %s" % (status, library.csg_last_error()))
        return self.put(packed)

    def conv(self, **fields: Any) -> Conv:
        """A call of csg_sparse_conv; ``fields`` by the header's names, without d_; those of z are lists."""
        arguments = self._loader.Conv()
        known = {field[0] for field in arguments._fields_}
        for name, value in fields.items():
            name = name if name in known else "d_" + name
            if name not in known:  # ctypes would make it an attribute that C never sees
                raise AttributeError("csg_conv has no field %s" % name)
            if isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    getattr(arguments, name)[index] = item
            else:
                setattr(arguments, name, value)

        return Conv(self, arguments)


class Conv:
    """A call of csg_sparse_conv with its arguments, ``arguments`` as C takes them."""

    def __init__(self, bench: Bench, arguments: Any) -> None:
        self.bench, self.arguments = bench, ctypes.byref(arguments)

    def __call__(self) -> None:
        self.bench.call("csg_sparse_conv", self.arguments)


def padded(columns: int, kind: int) -> int:
    """Row stride in elements: fp16 and int8 rows are padded to what the tensor cores read at once."""
    step = {F32: 4, F16: 16, I8: 32}[kind]
    return -(-columns // step) * step
