"""Reading single pictures: any common file to uint8 [H, W, 3] RGB."""

from __future__ import annotations

import os
import re
import stat
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Tuple, Union

import numpy as np

from crispseg.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MAX_SIDE = 16384
MAX_PIXELS = 1 << 27
_SUBFILE = 254  # TIFF tag NewSubfileType
_REDUCED, _MASK = 1, 4  # its bits: a smaller copy of another page, a page that says where another is transparent


def is_image(path: Path) -> bool:
    """True when the name ends like a picture's."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def natural_key(text: object) -> List[Tuple[int, int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    parts = re.split(r"([0-9]+)", str(text))
    return [(0, int(part), "") if i % 2 else (1, 0, part.lower()) for i, part in enumerate(parts)]


def require_regular(path: Union[str, Path], what: str) -> None:
    """Raise InputError for a pipe, device or socket at ``path``: opening one may wait for ever."""
    try:
        mode = os.stat(str(path)).st_mode
    except (OSError, ValueError):
        return  # whoever opens the file says it better
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            "%s %s: expected a file, found a pipe or device; save to a file first, or use camera:N or a stream address"
            % (what, path)
        )


def read_image(path: Union[str, Path], upright: bool = True) -> np.ndarray:
    """Read a picture as uint8 [H, W, 3] RGB, upright.

    The EXIF orientation is applied (not with ``upright=False``), grey becomes three equal channels, palettes are
    resolved, transparency is dropped (the colours stand as stored), 16-bit grey is scaled to 8 bits. Raises InputError
    for anything that is no picture, is damaged, has floating-point pixels, is larger than 16384 a side, or for a file
    of several pages or animated frames.
    """
    from PIL import ImageOps

    path = Path(path)
    with open_picture(path, "image") as image:
        return _to_rgb(ImageOps.exif_transpose(image) if upright else image, path)


@contextmanager
def open_picture(path: Path, what: str) -> Iterator[Any]:
    """The Pillow image at ``path``, its size checked; what goes wrong in the block is an InputError about ``what``."""
    from PIL import Image

    require_regular(path, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(str(path))
        with image:
            width, height = image.size
            if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
                raise _too_large(path, what, "%d x %d" % (width, height))
            count = _pictures_in(image)
            if count > 1:
                raise InputError(
                    "%s %s: expected one picture, found %d in the file; save them as a file each" % (what, path, count)
                )
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("%s %s: expected a file, found none" % (what, path)) from None
    except Exception as error:  # decoders raise many types on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            raise _too_large(path, what, "more") from None
        if "cannot identify image file" in reason:
            reason = "not a picture"
        raise InputError(
            "%s %s: expected a readable picture (%s), found: %s; copy or convert it again"
            % (what, path, ", ".join(item[1:] for item in IMAGE_SUFFIXES), " ".join(reason.split())[:200])
        ) from None


def _pictures_in(image: Any) -> int:
    """How many pictures a file holds, of which Pillow would give the first without a word.

    Overviews and masks of a TIFF belong to a page, and the further pictures in a camera's JPEG (MPO) are previews,
    brightness tables or other views of the first.
    """
    count = int(getattr(image, "n_frames", 1))
    if count == 1 or image.format == "MPO":
        return 1
    if image.format != "TIFF":
        return count
    whole = 0
    for page in range(count):
        image.seek(page)
        whole += not int(image.tag_v2.get(_SUBFILE, 0)) & (_REDUCED | _MASK)
    image.seek(0)
    return whole


def _too_large(path: Path, what: str, found: str) -> InputError:
    return InputError(
        "%s %s: expected at most %d pixels a side and %d in all, found %s; shrink it"
        % (what, path, MAX_SIDE, MAX_PIXELS, found)
    )


def _to_rgb(image, path: Path) -> np.ndarray:  # type: ignore[no-untyped-def]
    if image.mode.startswith("I"):  # I;16, I;16B, or I as some decoders give for 16-bit grey
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError("image %s: expected 8 or 16 bits a channel, found 32; convert it to 8 bits" % path)
        eight = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(eight[:, :, None], eight.shape + (3,)))
    if image.mode == "F":
        raise InputError("image %s: expected 8 or 16 bits a channel, found floating point; convert it to 8 bits" % path)
    array = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise InputError("image %s: cannot convert mode %s to RGB; convert it to 8-bit RGB" % (path, image.mode))
    return array
