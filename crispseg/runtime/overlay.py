"""Pictures of a label map: class colours, blended over the frame, outline of refined pixels, legend.

Colours are blended in whole numbers, by the same rule as in csg_overlay on a GPU, so that both give the same bytes:
``a = floor(255 * alpha + 0.5)`` of alpha as float32, ``out = round(((255 - a) * frame + a * colour) / 255)``.
"""

from __future__ import annotations

from typing import Optional, Sequence

import numpy as np

from crispseg.classes import ClassInfo

_OUTLINE = (255, 255, 255)


def palette(classes: Sequence[ClassInfo]) -> np.ndarray:
    """uint8 [256, 3]: the colour of each id; ids without a class (ignore, 255) are black."""
    table = np.zeros((256, 3), np.uint8)
    for index, item in enumerate(classes):
        table[index] = item.color
    return table


def colorize(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """uint8 [H, W] ids -> uint8 [H, W, 3] colours."""
    return np.asarray(_color_image(labels, table))


def _color_image(labels: np.ndarray, table: np.ndarray):  # type: ignore[no-untyped-def]
    from PIL import Image

    # Pillow expands a palette several times faster than numpy's take, and without the interpreter lock.
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(table.tobytes())
    return image.convert("RGB")


def blend(
    image: np.ndarray,
    labels: np.ndarray,
    table: np.ndarray,
    alpha: float = 0.5,
    active: Optional[np.ndarray] = None,
    legend: Optional[Sequence[ClassInfo]] = None,
) -> np.ndarray:
    """Lay class colours over a frame.

    ``image`` uint8 [H, W, 3], ``labels`` uint8 [H, W], ``alpha`` 0 (frame only) to 1 (colours only). ``active`` bool
    [H, W] draws the outline of the refined regions in white. ``legend`` adds a table of the classes that occur.
    Returns a new uint8 [H, W, 3].
    """
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    # A mask blends in whole numbers, where Image.blend adds floats and cuts off.
    weight = Image.new("L", picture.size, int(float(np.float32(alpha)) * 255 + 0.5))
    picture.paste(_color_image(labels, table), (0, 0), weight)
    return decorate(np.array(picture), labels, active, legend)


def decorate(
    out: np.ndarray,
    labels: np.ndarray,
    active: Optional[np.ndarray] = None,
    legend: Optional[Sequence[ClassInfo]] = None,
) -> np.ndarray:
    """Outline and legend of :func:`blend` on a picture uint8 [H, W, 3] that is blended already; it is written to."""
    if active is not None:
        out[outline(active)] = _OUTLINE
    if legend:
        counts = np.bincount(labels.ravel(), minlength=256)
        out = draw_legend(out, [item for i, item in enumerate(legend) if counts[i]])
    return out


def outline(active: np.ndarray) -> np.ndarray:
    """Bool [H, W]: the active pixels that touch an inactive one (or the border) above, below, left or right."""
    inner = active.copy()
    inner[1:] &= active[:-1]
    inner[:-1] &= active[1:]
    inner[:, 1:] &= active[:, :-1]
    inner[:, :-1] &= active[:, 1:]
    inner[[0, -1]] = False
    inner[:, [0, -1]] = False
    return active & ~inner


def draw_legend(image: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """Draw names and colours into the top left corner of uint8 [H, W, 3]; returns a new array."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(10, image.shape[0] // 45)
    try:
        font = ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):  # Pillow before 10.1, or without FreeType: one fixed small font
        font = ImageFont.load_default()
        size = 11
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture, "RGBA")
    line = size + size // 3
    names = [item.name.encode("latin-1", "replace").decode("latin-1") for item in classes]
    width = int(max([draw.textlength(name, font=font) for name in names] or [0])) + line * 2
    draw.rectangle([0, 0, width, line * len(names) + size // 3], fill=(0, 0, 0, 150))
    for row, (name, item) in enumerate(zip(names, classes)):
        top = row * line + size // 3
        draw.rectangle([size // 2, top, size // 2 + size, top + size], fill=tuple(item.color) + (255,))
        draw.text((size * 2, top - size // 10), name, font=font, fill=(255, 255, 255, 255))
    return np.asarray(picture)


def confidence_image(confidence: np.ndarray) -> np.ndarray:
    """uint8 [H, W] (255 = certain) -> uint8 [H, W, 3] grey, for a video."""
    return np.ascontiguousarray(np.broadcast_to(confidence[:, :, None], confidence.shape + (3,)))
