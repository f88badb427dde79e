"""SegRefiner's U-Net on the native kernels: Winograd convolutions over pixels as rows.

A dense picture is a grid on which every site is active, so the refiner's convolutions serve: pictures of a batch lie
below each other on one grid with a gap of two rows. Maps are [pixels, channels]; GroupNorm and SiLU run in blocks that
stay in the cache. The weights come from ``unet.onnx`` by the names that export/segrefiner.py gives them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from crispseg.engines.native_rows import Grid, Rows, Store, attend, group_norm, norm_silu
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, InputError
from crispseg.plugins import native_ops as ops
from crispseg.plugins.loader import Native

_KIND = "segrefiner"
LARGE_WEIGHT = 256 * 512
"""Input times output channels beyond which Winograd's tiles are 2x2 instead of 4x4: such layers work on few pixels, and
weights of four times the size serve few tiles there."""
_BLOCK = re.compile(r"(input_blocks\.(\d+)|middle_block|output_blocks\.(\d+))\.(\d+)\.(.+)\Z")


def load(path: Union[str, Path], spec: EngineSpec) -> NativeMaskUNet:
    """Open the network of a SegRefiner bundle.

    Raises:
        EnvironmentMismatch: no native library.
        BundleError: the file is no graph that ``crispseg export segrefiner`` wrote.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    native = Native(spec.thread_count)
    try:
        model = onnx.load(str(path))
        facts = {item.key: item.value for item in model.metadata_props}
        if facts.get("crispseg.kind") != _KIND:
            raise BundleError("%s: expected a graph of kind segrefiner, found another; export it again" % path)
        size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        heads = int(facts.get("crispseg.heads", "0"))
        weights = {}
        while model.graph.initializer:  # the file takes as much memory as the packed weights: free it on the way
            tensor = model.graph.initializer.pop()
            name = tensor.name[:-5] if tensor.name.endswith(".half") else tensor.name  # --half: widened by a Cast
            weights[name] = numpy_helper.to_array(tensor).astype(np.float32, copy=False)
        return NativeMaskUNet(native, Path(path), weights, size, heads)
    except BundleError:
        native.close()
        raise
    except (
        InputError,
        DecodeError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        StopIteration,
        OSError,
    ) as error:
        native.close()
        raise BundleError(
            "%s: expected the U-Net that crispseg export segrefiner writes, found another (%s: %s); export it again"
            % (path, type(error).__name__, str(error)[:120])
        ) from None


class NativeMaskUNet:
    """The U-Net; same interface as ``OrtEngine``. Used by one thread at a time."""

    def __init__(self, native: Native, path: Path, weights: Dict[str, np.ndarray], size: int, heads: int) -> None:
        """Takes over ``native`` and empties ``weights``. ``size``: side of the input, px."""
        self.path, self.size, self._native, self._heads = path, size, native, heads
        self.inputs = {"image": (np.float32, ("N", 4, size, size)), "t": (np.int64, ("N",))}
        self.outputs = {"logits": (np.float32, ("N", 1, size, size))}
        self._blocks = _blocks(weights)
        self._convs: Dict[str, Tuple[ops.PackedWeight, Optional[np.ndarray], int]] = {}
        self._vectors: Dict[str, np.ndarray] = {}
        for name in [key for key in weights if key.endswith(".weight")]:
            self._convs[name[:-7]] = self._packed(name[:-7], weights.pop(name), weights.pop(name[:-7] + ".bias", None))
        for name in list(weights):
            if name.endswith((".gamma", ".beta", ".table")):
                self._vectors[name] = np.ascontiguousarray(_flat(weights.pop(name), name), np.float32)
        self._store, self._count = Store(), 0
        self._grids: Dict[Tuple[int, int], Grid] = {}
        self._steps = len(next(v for k, v in self._vectors.items() if k.endswith(".table")))

    def _packed(
        self, name: str, weight: np.ndarray, bias: Optional[np.ndarray]
    ) -> Tuple[ops.PackedWeight, Optional[np.ndarray], int]:
        cout, cin, side = weight.shape[:3]
        # Tap kx * 3 + ky, channels last.
        taps = np.ascontiguousarray(weight.transpose(3, 2, 1, 0).reshape(side * side, cin, cout))
        down = name.startswith("input_blocks") and name.count(".") == 2  # stride 2
        tile = 0
        if side == 3 and min(cin, cout) >= 32 and not down:
            tile = 4 if cin * cout <= LARGE_WEIGHT else 2
        packed = ops.pack_winograd(self._native, taps, tile) if tile else ops.pack_weight(self._native, taps)
        return packed, None if bias is None else np.ascontiguousarray(bias, np.float32), tile

    def run(self, inputs: Dict[str, np.ndarray], outputs: Optional[Sequence[str]] = None) -> Dict[str, np.ndarray]:
        """``image`` float32 [N, 4, S, S] and ``t`` int64 [N] -> ``logits`` float32 [N, 1, S, S].

        Raises:
            InputError: other shapes or dtypes, or a time step that the network has not.
        """
        image, t = inputs["image"], inputs["t"]
        count = len(t)
        if image.dtype != np.float32 or image.shape != (count, 4, self.size, self.size) or not count:
            raise InputError(
                "image: expected float32 [%d,4,%d,%d], found %s" % (count, self.size, self.size, image.shape)
            )
        if t.dtype != np.int64 or t.min() < 0 or t.max() >= self._steps:
            raise InputError("t: expected int64 from 0 to %d, found others" % (self._steps - 1))
        if count != self._count:  # memory of another batch fits nothing
            self._store.clear()
            self._count = count
        side = self.size
        x = Rows(self._store, count, side, 4)
        x.values[:] = image.transpose(0, 2, 3, 1).reshape(-1, 4)
        h = self._conv("stem", x)
        skips = [h]
        for name, parts in self._blocks:
            if name.startswith("output"):
                h = h.joined(skips.pop())
            for kind, part in parts:
                h = getattr(self, kind)(part, h, t)
            if name.startswith("input"):
                skips.append(h)
        h = norm_silu(h, self._vectors["out.gamma"], self._vectors["out.beta"])
        last = self._conv("logits", h)
        return {"logits": last.values.reshape(count, 1, side, side).copy()}  # its memory is used again

    def _grid(self, count: int, side: int) -> Grid:
        key = (count, side)
        if key not in self._grids:
            if len(self._grids) > 64:
                self._grids.clear()  # batches of every size came by
            self._grids[key] = Grid(self._native, count, side)
        return self._grids[key]

    def _conv(
        self, name: str, x: Rows, residual: Optional[Rows] = None, bias: Optional[np.ndarray] = None, stride: int = 1
    ) -> Rows:
        weight, own, tile = self._convs[name]
        y = Rows(self._store, x.count, x.side // stride, weight.cout)
        grid = self._grid(x.count, x.side)
        table = None if tile or weight.taps == 1 else grid.down if stride == 2 else grid.same
        arguments = ops.conv_arguments(
            x.values,
            weight,
            table,
            n_out=len(y.values),
            bias=own if bias is None else bias,
            residual=None if residual is None else residual.values,
            y=y.values,
        )
        if tile:
            ops.winograd_conv(self._native, arguments, grid.tiles(tile))
        else:
            grid.direct(self._native, arguments)
        return y

    def residual(self, name: str, x: Rows, t: np.ndarray) -> Rows:
        """A residual block at time step ``t`` int64 [count] of each picture."""
        vectors = self._vectors
        y = norm_silu(x, vectors[name + ".in.gamma"], vectors[name + ".in.beta"])
        table = vectors[name + ".time.table"]
        if (t == t[0]).all():
            y = self._conv(name + ".conv1", y, bias=table[t[0]])
        else:
            y = self._conv(name + ".conv1", y)
            y.pictures()[:] += table[t][:, None]
        y = norm_silu(y, vectors[name + ".mid.gamma"], vectors[name + ".mid.beta"])
        skip = self._conv(name + ".skip", x) if name + ".skip" in self._convs else x
        return self._conv(name + ".conv2", y, residual=skip)

    def attention(self, name: str, x: Rows, t: np.ndarray) -> Rows:
        """Self-attention over the pixels of each picture; ``t`` plays no part."""
        y = group_norm(x, self._vectors[name + ".gamma"], self._vectors[name + ".beta"])
        y = attend(self._conv(name + ".qkv", y), self._heads)
        return self._conv(name + ".proj", y, residual=x)

    def down(self, name: str, x: Rows, t: np.ndarray) -> Rows:
        """Convolution with stride 2: half the side; ``t`` plays no part."""
        return self._conv(name, x, stride=2)

    def up(self, name: str, x: Rows, t: np.ndarray) -> Rows:
        """Twice the side, then a convolution; ``t`` plays no part."""
        return self._conv(name, x.twice())

    def close(self) -> None:
        """Free the weights and the worker threads."""
        self._convs.clear()
        self._vectors.clear()
        self._grids.clear()
        self._store.clear()
        self._native.close()


def _flat(vector: np.ndarray, name: str) -> np.ndarray:
    """A time table as [steps, C], other vectors as [1, C]."""
    return vector.reshape(len(vector) if name.endswith(".table") else 1, -1)


def _blocks(weights: Dict[str, np.ndarray]) -> List[Tuple[str, List[Tuple[str, str]]]]:
    """(block, [(method, name of the part)]) in the order they run, read off the names of the weights."""
    found: Dict[Tuple[int, int, str], Dict[int, str]] = {}
    for name in weights:
        match = _BLOCK.match(name)
        if not match:
            continue
        block, place = match.group(1), int(match.group(4))
        rank = (0, int(match.group(2)), block) if match.group(2) else (2, int(match.group(3) or 0), block)
        rank = (1, 0, block) if block == "middle_block" else rank
        plain = "down" if rank[0] == 0 else "up"
        kind = {"qkv.weight": "attention", "conv1.weight": "residual", "weight": plain}.get(match.group(5))
        if kind:
            found.setdefault(rank, {})[place] = kind
    if not found:
        raise BundleError("U-Net: expected blocks by name, found none; export the bundle again")
    return [
        (rank[2], [(kind, "%s.%d" % (rank[2], place)) for place, kind in sorted(parts.items())])
        for rank, parts in sorted(found.items())
    ]
