"""Photos with their masks: reading, pairing by name, grey levels to foreground.

A mask belongs to the upright photo (EXIF orientation applied); the mask's own metadata is not looked at. When only
the photo as stored has the mask's size, that is an error which names --ignore-exif.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from crispseg.errors import InputError
from crispseg.runtime.images import is_image, natural_key, open_picture, read_image

FOREGROUND = 128  # of 255: the first grey level at or above one half
_ENDINGS = re.compile(r"_(im|image|seg|mask|gt)\Z")


class Pair(NamedTuple):
    """A photo and its mask; ``name`` is the photo's stem."""

    name: str
    photo: Path
    mask: Path


def find_pairs(photos: Union[str, Path], masks: Union[str, Path]) -> List[Pair]:
    """Two files, or two folders whose files are matched by stem; NAME_im with NAME_seg too (so BIG is laid out).

    Raises:
        InputError: a place is missing or empty, a photo has no mask, or two files would match.
    """
    photos, masks = Path(photos), Path(masks)
    for path, what in ((photos, "photo"), (masks, "mask")):
        if not path.exists():
            raise InputError("%s %s: expected a file or folder, found none" % (what, path))
    if photos.is_dir() != masks.is_dir():
        raise InputError(
            "photos %s and masks %s: expected two files or two folders, found one of each" % (photos, masks)
        )
    if not photos.is_dir():
        return [Pair(photos.stem, photos, masks)]
    same = photos.resolve() == masks.resolve()
    left = files_by_key(photos, "photo", ("seg", "mask", "gt") if same else ())
    right = files_by_key(masks, "mask", ("im", "image", "gt") if same else ())
    missing = [left[key].name for key in left if key not in right]
    if missing:
        raise InputError(
            "masks %s: expected a mask of the same stem for every photo, found none for %s%s; add them or take the "
            "photos out" % (masks, ", ".join(missing[:3]), " and %d more" % (len(missing) - 3) if missing[3:] else "")
        )
    return [Pair(left[key].stem, left[key], right[key]) for key in left]


def unused_masks(pairs: Sequence[Pair], masks: Path) -> List[str]:
    """Names of the pictures in a folder of masks that belong to no pair."""
    used = {pair.mask.name for pair in pairs}
    return sorted(p.name for p in masks.iterdir() if is_image(p) and p.name not in used) if masks.is_dir() else []


def check_pairs(pairs: Sequence[Pair], labels: bool, ignore_exif: bool) -> None:
    """Look at the sizes of all pairs, from their headers, before any is refined. Raises InputError for the first
    pair that does not fit, or that the refinement could not read (``labels``: the masks are label maps).
    """
    modes = ("L", "P", "1") if labels else ("1", "L", "LA", "I;16", "I;16B", "I", "RGB", "RGBA")
    for pair in pairs:
        (photo, _), (mask, mode) = _header(pair.photo, not ignore_exif), _header(pair.mask, False)
        if photo is None or photo != mask or mode not in modes:  # whoever reads them says best what is wrong
            given = read_label_map(pair.mask) if labels else read_mask(pair.mask)
            read_photo(pair.photo, given.shape, ignore_exif)


def _header(path: Path, upright: bool) -> Tuple[Optional[Tuple[int, int]], str]:
    """((height, width), mode) as a picture's header says; (None, "") when it cannot be read."""
    try:
        with open_picture(path, "picture") as image:
            width, height = image.size
            turned = upright and image.getexif().get(0x0112) in (5, 6, 7, 8)
            return ((width, height) if turned else (height, width)), image.mode
    except InputError:
        return None, ""


def files_by_key(folder: Path, what: str, skip: Sequence[str]) -> Dict[str, Path]:
    """Pictures of a folder by stem without _im, _seg, _mask or _gt; ``skip``: endings of other sorts. InputError."""
    found: Dict[str, Path] = {}
    for path in sorted((p for p in folder.iterdir() if is_image(p)), key=natural_key):
        ending = _ENDINGS.search(path.stem)
        if ending and ending.group(1) in skip:
            continue
        key = _ENDINGS.sub("", path.stem)
        if key in found:
            raise InputError(
                "%ss %s: expected one %s called %s, found %s and %s; keep one"
                % (what, folder, what, key, found[key].name, path.name)
            )
        found[key] = path
    if not found:
        raise InputError("%ss %s: expected pictures, found none" % (what, folder))
    return found


def read_photo(path: Union[str, Path], size: Sequence[int], ignore_exif: bool = False) -> np.ndarray:
    """A photo uint8 [H, W, 3] RGB, which must have the mask's ``size`` (H, W). Raises InputError."""
    photo = read_image(path, upright=not ignore_exif)
    if photo.shape[:2] != tuple(size):
        turned = not ignore_exif and read_image(path, upright=False).shape[:2] == tuple(size)
        raise InputError(
            "photo %s: expected the mask's size %d x %d, found %d x %d (height x width); %s"
            % (
                path,
                size[0],
                size[1],
                photo.shape[0],
                photo.shape[1],
                "the mask fits the photo without its EXIF orientation: use --ignore-exif, or rotate the mask"
                if turned
                else "resize the mask or give the photo it was made on",
            )
        )
    return photo


def read_mask(path: Union[str, Path]) -> np.ndarray:
    """A mask as grey levels uint8 [H, W]; colours become grey, transparency is dropped, 16 bits are scaled.

    Raises InputError for what is no picture, and for a palette, whose numbers are class ids and no grey levels.
    """
    return _read(path, palette=False)


def read_label_map(path: Union[str, Path]) -> np.ndarray:
    """Class ids uint8 [H, W] of an 8-bit grey or palette picture, as they are stored. Raises InputError."""
    return _read(path, palette=True)


def _read(path: Union[str, Path], palette: bool) -> np.ndarray:
    path = Path(path)
    with open_picture(path, "mask") as image:
        mode = image.mode
        if palette and mode not in ("L", "P", "1"):
            raise InputError("label map %s: expected 8-bit class ids, found mode %s; convert it" % (path, mode))
        if not palette and mode == "P":
            raise InputError(
                "mask %s: expected grey levels, found a palette; convert it to grey, or is it a map of class ids? "
                "crispseg refine --labels reads those" % path
            )
        if mode.startswith("I") or mode == "F":
            values = np.asarray(image).astype(np.float64)
            if mode == "F" or values.min() < 0 or values.max() > 65535:
                raise InputError("mask %s: expected 8 or 16 bits, found more; convert it to 8 bits" % path)
            return np.floor(values * 255 / 65535 + 0.5).astype(np.uint8)
        values = np.array(image if mode in ("L", "P") else _grey(image, mode))
    if palette and mode == "1":
        values = (values > 0).astype(np.uint8)
    return np.ascontiguousarray(values, np.uint8)


def _grey(image: Any, mode: str) -> Any:
    if mode == "LA":
        return image.getchannel(0)
    return image.convert("RGB").convert("L") if mode == "RGBA" else image.convert("L")


def foreground(mask: np.ndarray) -> np.ndarray:
    """Bool [H, W]: the pixels of a grey mask at or above one half (128 of 255)."""
    return mask >= FOREGROUND
