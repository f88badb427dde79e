"""CRM at run time: a picture and a coarse mask in, a probability for every pixel out, in bounded memory.

Four turns at growing scales; each reads the whole picture, resized, with the mask of the turn before, and answers for
every full-size pixel. A turn goes tile by tile: the backbone runs on a window with all the surroundings that the tile
depends on, so tiling changes nothing but the last bits; then fusion and decoder run on blocks of the tile. Nothing
but the picture and two maps of one number a pixel is ever held at full size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np

from crispseg.bundle_masks import CrmInfo, MaskBundle, load_mask_bundle
from crispseg.engines import ort
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, InputError
from crispseg.runtime.crm_tables import F32, Axis, reflected
from crispseg.runtime.crm_tiles import TILE_SIDE, Range, blocks, picture_window, plan

#: Most pixels of a backbone window; a pixel takes 420 bytes at the peak.
TILE_AREA = TILE_SIDE * TILE_SIDE
#: A mask with less than this sum of probabilities counts as empty and stays empty.
EMPTY = 1.0

_PORTS = {
    "backbone": (("picture",), ("first", "second", "third")),
    "fusion": (("first", "second", "rows2", "columns2", "third", "rows3", "columns3"), ("projected",)),
    "decoder": (("projected", "row_cells", "row_terms", "column_cells", "column_terms"), ("logits",)),
}
Progress = Optional[Callable[[int, int], None]]


class CrmEngine:
    """The three networks of a CRM bundle, ready to run. Used by one thread at a time."""

    def __init__(
        self, info: CrmInfo, networks: Dict[str, Any], tile_area: int = TILE_AREA, tile_side: Optional[int] = None
    ) -> None:
        """Takes over loaded engines ``backbone``, ``fusion`` and ``decoder``; checks that they fit together.

        ``tile_side``: longest side of a backbone window, for engines with a profile; None = any.

        Raises:
            BundleError: inputs, outputs or fixed sizes are not those of CRM.
        """
        self.info, self.tile_area, self.tile_side = info, tile_area, tile_side
        for name, (inputs, outputs) in _PORTS.items():
            engine = networks[name]
            if sorted(engine.inputs) != sorted(inputs) or sorted(engine.outputs) != sorted(outputs):
                names = [", ".join(ports) for ports in (inputs, outputs, engine.inputs, engine.outputs)]
                raise BundleError(
                    "%s: expected inputs %s and outputs %s, found %s and %s; export the bundle again"
                    % (engine.path, *names)
                )
        shape = networks["decoder"].outputs["logits"][1]
        if list(shape) != list(info.block):
            raise BundleError(
                "%s: expected blocks of %s queries, found %s; export the bundle again"
                % (networks["decoder"].path, list(info.block), list(shape))
            )
        patch = networks["decoder"].inputs["projected"][1]
        need = [side // 2 + 4 for side in info.block[::-1]]
        if (
            len(patch) != 4
            or any(not isinstance(n, int) for n in patch)
            or any(a < b for a, b in zip(patch[1::2], need))
        ):
            raise BundleError(
                "%s: expected a patch of %s cells or more, found %s; export the bundle again"
                % (networks["decoder"].path, need, list(patch))
            )
        self._networks = networks
        self._patch = np.zeros(tuple(patch), F32)
        self._mean, self._std = np.asarray(info.mean, F32), np.asarray(info.std, F32)

    def refine(self, image: np.ndarray, mask: np.ndarray, progress: Progress = None) -> np.ndarray:
        """One mask: :func:`refine` with this engine."""
        return self.turns(image, mask, progress)[-1]

    def turns(
        self, image: np.ndarray, mask: np.ndarray, progress: Progress = None, keep: bool = False
    ) -> List[np.ndarray]:
        """Probabilities float32 [H,W] after each turn (``keep``) or after the last one only.

        Raises:
            InputError: picture and mask are not uint8 [H,W,3] and [H,W] in 0..1.
        """
        _check(image, mask)
        border = self.info.border
        reflect = (reflected(image.shape[0], border), reflected(image.shape[1], border))
        current = np.ascontiguousarray(mask, F32)[np.ix_(*reflect)]
        inside = (slice(border, border + image.shape[0]), slice(border, border + image.shape[1]))
        turns = [tuple(Axis(len(side), scale) for side in reflect) for scale in self.info.scales]
        total, done = sum(rows.size * columns.size for rows, columns in turns), 0
        results: List[np.ndarray] = []
        for axes in turns:
            if float(current.sum(dtype=np.float64)) < EMPTY:
                current = np.zeros_like(current)
            else:
                following = np.empty_like(current)
                for fraction in self._turn(image, current, axes, reflect, following):
                    if progress:
                        progress(done + int(fraction * axes[0].size * axes[1].size), total)
                current = following
            done += axes[0].size * axes[1].size
            if progress:
                progress(done, total)
            if keep or axes is turns[-1]:
                results.append(np.ascontiguousarray(current[inside]))
        return results

    def _turn(self, image, mask, axes, reflect, result):  # type: ignore[no-untyped-def]
        """Answers all queries of one turn into ``result``; yields the share done after each tile."""
        rows, columns = axes
        ranges_y, ranges_x = plan(rows, columns, self.info.block, self.tile_area, self.tile_side)
        done = 0
        for range_y in ranges_y:
            for range_x in ranges_x:
                window = (rows.window(*range_y), columns.window(*range_x))
                picture = picture_window(image, mask, axes, reflect, window, self._mean, self._std)
                maps = self._networks["backbone"].run({"picture": picture})
                del picture
                for block_y in blocks(rows, range_y, self.info.block[0]):
                    for block_x in blocks(columns, range_x, self.info.block[1]):
                        self._fused(axes, window, maps, block_y, block_x, result)
                del maps  # before the next ones are made
                done += (range_y[1] - range_y[0]) * (range_x[1] - range_x[0])
                yield done / result.size

    def _fused(self, axes, window, maps, block_y, block_x, result) -> None:  # type: ignore[no-untyped-def]
        """Fuses the maps where one block needs them and answers its queries."""
        rows, columns = axes
        cells = (rows.cells_of(*block_y), columns.cells_of(*block_x))
        names = ("rows", "columns")
        inputs = {"first": _padded(maps["first"], axes, window, cells)}
        for level, (name, step) in enumerate((("second", 4), ("third", 8))):
            sources = [axis.sources(axis.with_border(c), level) for axis, c in zip(axes, cells)]
            (y0, y1), (x0, x1) = ((a - w[0] // step, b - w[0] // step) for (a, b), w in zip(sources, window))
            inputs[name] = np.ascontiguousarray(maps[name][:, :, y0:y1, x0:x1])
            for axis, c, s, key in zip(axes, cells, sources, names):
                matrix = axis.matrix(c, level, s)
                inputs["%s%d" % (key, level + 2)] = matrix if key == "rows" else np.ascontiguousarray(matrix.T)
        projected = self._networks["fusion"].run(inputs)["projected"]
        height, width = self.info.block
        for y in range(block_y[0], block_y[1], height):
            end_y = min(y + height, block_y[1])
            low_y, high_y = rows.cells_of(y, end_y)
            row_cells, row_terms = rows.block(y, height, low_y)
            for x in range(block_x[0], block_x[1], width):
                end_x = min(x + width, block_x[1])
                low_x, high_x = columns.cells_of(x, end_x)
                column_cells, column_terms = columns.block(x, width, low_x)
                at_y, at_x = cells[0][0], cells[1][0]
                part = projected[:, low_x - at_x : high_x - at_x, :, low_y - at_y : high_y - at_y]
                self._patch[:, : part.shape[1], :, : part.shape[3]] = part
                tables = {"row_cells": row_cells, "row_terms": row_terms}
                tables.update({"column_cells": column_cells, "column_terms": column_terms})
                logits = self._networks["decoder"].run({"projected": self._patch, **tables})["logits"]
                with np.errstate(over="ignore"):
                    result[y:end_y, x:end_x] = 1 / (1 + np.exp(-logits[: end_y - y, : end_x - x]))

    def close(self) -> None:
        """Free the networks."""
        for engine in self._networks.values():
            engine.close()

    def __enter__(self) -> CrmEngine:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def open_crm(
    bundle: Union[str, Path, MaskBundle], *, provider: str = "CPUExecutionProvider", threads: int = 0,
    tile_area: int = TILE_AREA,
) -> CrmEngine:  # fmt: skip
    """Load the networks of a CRM bundle into ONNX Runtime.

    Args:
        bundle: a bundle or its path.
        provider: ONNX Runtime's name of the execution provider.
        threads: 0 = all usable CPUs.
        tile_area: most pixels of a backbone window; smaller needs less memory and more time.

    Raises:
        BundleError: not a usable CRM bundle.
        EnvironmentMismatch: ONNX Runtime or the provider is missing.
    """
    opened = bundle if isinstance(bundle, MaskBundle) else load_mask_bundle(bundle)
    if not isinstance(opened.refiner, CrmInfo):
        raise BundleError("%s: expected a CRM bundle, found %s" % (opened.path, opened.kind))
    spec = EngineSpec(backend="onnxruntime", provider=provider, threads=threads)
    networks: Dict[str, Any] = {}
    try:
        for name in _PORTS:
            networks[name] = ort.load(opened.file(getattr(opened.refiner, name)), spec)
        return CrmEngine(opened.refiner, networks, tile_area)
    except BaseException:
        for engine in networks.values():
            engine.close()
        raise


def refine(engine: CrmEngine, image: np.ndarray, mask: np.ndarray, *, progress: Progress = None) -> np.ndarray:
    """Refine one mask.

    Args:
        engine: from :func:`open_crm`.
        image: uint8 [H,W,3] RGB, any size.
        mask: float32 [H,W] in 0..1; grey levels count as they are. A mask whose pixels, with the reflected border, sum
            to less than 1 is empty, and stays so.
        progress: called with (work done, work in all).

    Returns:
        Probability float32 [H,W]; the published mask is where it is above 0.5.

    Raises:
        InputError: picture or mask is of another type, size or range.
    """
    return engine.refine(image, mask, progress)


def _check(image: np.ndarray, mask: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError("picture: expected uint8 [H,W,3], found %s %s" % (image.dtype, list(image.shape)))
    if mask.shape != image.shape[:2]:
        raise InputError(
            "mask: expected the size of the picture, %dx%d, found %s"
            % (image.shape[1], image.shape[0], "x".join(str(n) for n in mask.shape[::-1]))
        )
    if mask.dtype.kind not in "fb" or not (mask.min() >= 0 and mask.max() <= 1):
        raise InputError(
            "mask: expected floats from 0 to 1, found %s from %s to %s" % (mask.dtype, mask.min(), mask.max())
        )


def _padded(
    first: np.ndarray, axes: Tuple[Axis, Axis], window: Tuple[Range, Range], cells: Tuple[Range, Range]
) -> np.ndarray:
    """Cells with a border of one of the first map; zeros outside the picture, as a convolution pads them."""
    inside = [axis.with_border(c) for axis, c in zip(axes, cells)]
    result = np.zeros((1, first.shape[1]) + tuple(b - a + 2 for a, b in cells), F32)
    (to_y, to_x), (from_y, from_x) = (
        [slice(a - c[0] + 1, b - c[0] + 1) for (a, b), c in zip(inside, cells)],
        [slice(a - w[0] // 2, b - w[0] // 2) for (a, b), w in zip(inside, window)],
    )
    result[:, :, to_y, to_x] = first[:, :, from_y, from_x]
    return result
