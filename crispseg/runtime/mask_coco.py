"""COCO instance results through SegRefiner: all objects of a photo in batches, the file's order kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np

from crispseg.errors import InputError
from crispseg.report import write_text
from crispseg.runtime.coco import decode, encode
from crispseg.runtime.images import is_image
from crispseg.runtime.mask_images import read_photo

MAX_BYTES = 1 << 30


class CocoRun:
    """A results file (a list of objects) or an annotation file (objects under ``annotations``) with its photos."""

    def __init__(
        self, photos: Path, results: Path, annotations: Optional[Path], ignore_exif: bool, limit: Optional[int]
    ) -> None:
        """Read and check the files. Raises InputError."""
        self.ignore_exif, self.path = ignore_exif, results
        self.data = _read_json(results)
        inside = self.data if isinstance(self.data, dict) else {}
        self.objects: List[Any] = inside.get("annotations") if inside else self.data  # type: ignore[assignment]
        if not isinstance(self.objects, list):
            raise InputError("%s: expected a list of COCO results, or annotations, found something else" % results)
        listed = inside.get("images")
        if annotations is not None:
            named = _read_json(annotations)
            listed = named.get("images") if isinstance(named, dict) else None
            if not isinstance(listed, list):
                raise InputError("--annotations %s: expected a COCO file with images, found none" % annotations)
        by_image: Dict[Any, List[int]] = {}
        for index, item in enumerate(self.objects):
            ok = isinstance(item, dict) and type(item.get("image_id")) in (int, str) and "segmentation" in item
            if not ok:
                raise InputError("%s: object %d: expected image_id and segmentation, found none" % (results, index))
            by_image.setdefault(item["image_id"], []).append(index)
        places = _photos(photos, listed)
        missing = [image for image in by_image if str(image) not in places]
        if missing:
            raise InputError(
                "photos %s: expected the photo of image_id %s, found none (%d missing); give the folder, or "
                "--annotations with the names" % (photos, missing[0], len(missing))
            )
        self.images = [(places[str(image)], found) for image, found in by_image.items()][:limit]
        self.total = len(self.images)
        for _, indices in self.images:  # a wrong one must not end the work of hours: results are written at the end
            masks = _Masks(self, indices)
            for number in range(len(masks)):
                masks[number]

    def run(
        self, refiner: Any, folder: Path, record: Any, stop: Callable[[], bool], tell: Callable[[float], None]
    ) -> Iterator[int]:
        """Refine photo by photo; yields how many are done, and calls ``tell`` with that and the share of the next.

        Raises:
            InputError: SegRefiner in mode semantic, or a photo that cannot be read.
        """
        if refiner.mode != "instance":
            raise InputError("COCO results: expected --mode instance, found %s; give it" % refiner.mode)
        for done, (path, indices) in enumerate(self.images):
            if stop():
                return
            masks = _Masks(self, indices)
            with record.timed("decode"):
                first = masks[0]
                photo = read_photo(path, first.shape, self.ignore_exif)
            refined = ready = 0
            with record.timed("refine"):
                for found in refiner.objects(photo, masks):
                    item = self.objects[indices[found.number]]
                    record.changed.append(100.0 * float((found.mask != masks[found.number]).mean()))
                    ready += 1
                    tell(done + ready / len(indices))
                    if found.box is None:
                        continue
                    refined += 1
                    item["segmentation"] = encode(found.mask)
                    if "area" in item:
                        item["area"] = int(found.mask.sum())
            record.items.append({"name": path.stem, "objects": len(indices), "refined": refined})
            yield done + 1

    def files(self) -> Dict[str, List[Path]]:
        """What was read."""
        return {"photos": [path for path, _ in self.images], "masks": [self.path]}

    def finish(self, folder: Path, interrupted: bool) -> Dict[str, str]:
        """Write the file with the refined masks; everything else in it stays as it was."""
        if interrupted:
            return {}
        write_text(folder / "results.json", json.dumps(self.data, separators=(",", ":")) + "\n")
        return {"results": "results.json"}


class _Masks:
    """The masks of one photo, decoded when they are asked for. They are the given ones until a new one is stored."""

    def __init__(self, run: CocoRun, indices: List[int]) -> None:
        self.run, self.indices = run, indices
        self.shape: Any = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> np.ndarray:
        index = self.indices[number]
        mask = decode(self.run.objects[index]["segmentation"], "%s: object %d" % (self.run.path, index))
        self.shape = self.shape or mask.shape
        if mask.shape != self.shape:
            raise InputError("%s: object %d: expected the size of the photo's first object" % (self.run.path, index))
        return mask


def _photos(folder: Path, listed: Optional[List[Any]]) -> Dict[str, Path]:
    """image_id as text -> photo. Without a list the id is the stem, leading zeros or not."""
    if listed is not None:
        found = {}
        for item in listed:
            if not isinstance(item, dict) or "id" not in item or not isinstance(item.get("file_name"), str):
                raise InputError("COCO images: expected id and file_name in every entry, found none")
            path = folder / Path(item["file_name"]).name
            if path.is_file():
                found[str(item["id"])] = path
        return found
    if not folder.exists():
        raise InputError("photos %s: expected a folder or photo, found none" % folder)
    paths = sorted(p for p in folder.iterdir() if is_image(p)) if folder.is_dir() else [folder]
    found = {path.stem: path for path in paths}
    found.update({str(int(p.stem)): p for p in paths if p.stem.isascii() and p.stem.isdigit()})
    return found


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError("%s: expected at most 1 GiB, found more; split it" % path)
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("%s: expected a COCO file, found none" % path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("%s: not valid JSON (%s); save it again" % (path, str(error)[:120])) from None
