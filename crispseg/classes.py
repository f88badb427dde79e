"""Class tables: names and colours, built in (Cityscapes, CamVid) or read from a small file."""

from __future__ import annotations

import colorsys
import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

from crispseg.errors import InputError

IGNORE_LABEL = 255
MAX_CLASSES = 255  # ids 0..254 in 8-bit label maps; 255 is the ignore label
MAX_NAME = 64
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name and its RGB colour, 0..255 each. The id is the position in the table."""

    name: str
    color: Tuple[int, int, int]


# Source: the label definitions that the Cityscapes authors publish (the 19 classes that are evaluated, train-id order).
CITYSCAPES: Tuple[ClassInfo, ...] = (
    ClassInfo("road", (128, 64, 128)),
    ClassInfo("sidewalk", (244, 35, 232)),
    ClassInfo("building", (70, 70, 70)),
    ClassInfo("wall", (102, 102, 156)),
    ClassInfo("fence", (190, 153, 153)),
    ClassInfo("pole", (153, 153, 153)),
    ClassInfo("traffic light", (250, 170, 30)),
    ClassInfo("traffic sign", (220, 220, 0)),
    ClassInfo("vegetation", (107, 142, 35)),
    ClassInfo("terrain", (152, 251, 152)),
    ClassInfo("sky", (70, 130, 180)),
    ClassInfo("person", (220, 20, 60)),
    ClassInfo("rider", (255, 0, 0)),
    ClassInfo("car", (0, 0, 142)),
    ClassInfo("truck", (0, 0, 70)),
    ClassInfo("bus", (0, 60, 100)),
    ClassInfo("train", (0, 80, 100)),
    ClassInfo("motorcycle", (0, 0, 230)),
    ClassInfo("bicycle", (119, 11, 32)),
)

# Source: the colours of the CamVid label files; the 11-class grouping is the one of SegNet.
CAMVID: Tuple[ClassInfo, ...] = (
    ClassInfo("sky", (128, 128, 128)),
    ClassInfo("building", (128, 0, 0)),
    ClassInfo("pole", (192, 192, 128)),
    ClassInfo("road", (128, 64, 128)),
    ClassInfo("pavement", (0, 0, 192)),
    ClassInfo("tree", (128, 128, 0)),
    ClassInfo("sign", (192, 128, 128)),
    ClassInfo("fence", (64, 64, 128)),
    ClassInfo("car", (64, 0, 128)),
    ClassInfo("pedestrian", (64, 64, 0)),
    ClassInfo("bicyclist", (0, 128, 192)),
)

TABLES = {"cityscapes": CITYSCAPES, "camvid": CAMVID}


def check_classes(classes: Sequence[ClassInfo], where: str = "classes") -> Tuple[ClassInfo, ...]:
    """Return the table as a tuple, or raise InputError: 2..255 classes, plain unique names, unique colours."""
    table = tuple(classes)
    if not 2 <= len(table) <= MAX_CLASSES:
        raise InputError("%s: expected 2 to %d classes, found %d" % (where, MAX_CLASSES, len(table)))
    names: Dict[str, int] = {}
    colors: Dict[Tuple[int, ...], int] = {}
    for index, item in enumerate(table):
        name, color = item.name, item.color
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or not name.isprintable():
            raise InputError(
                "%s: class %d needs a printable name of 1 to %d characters, found %r"
                % (where, index, MAX_NAME, name if not isinstance(name, str) else name[:MAX_NAME])
            )
        ok = isinstance(color, (tuple, list)) and len(color) == 3
        if not ok or not all(type(v) is int and 0 <= v <= 255 for v in color):
            raise InputError(
                "%s: class %d (%s) needs a colour of three integers 0..255, found %r" % (where, index, name, color)
            )
        if name in names:
            raise InputError(
                "%s: class name %r stands twice, at %d and %d; rename one" % (where, name, names[name], index)
            )
        if tuple(color) in colors:
            raise InputError(
                "%s: classes %d and %d share the colour %r; give each its own"
                % (where, colors[tuple(color)], index, tuple(color))
            )
        names[name] = index
        colors[tuple(color)] = index
    return tuple(ClassInfo(item.name, (item.color[0], item.color[1], item.color[2])) for item in table)


def load_classes(name_or_file: Union[str, Path]) -> Tuple[ClassInfo, ...]:
    """Return the class table called "cityscapes" or "camvid", or read one from a file.

    A JSON file holds a list whose items are names, or objects ``{"name": ..., "color": [r, g, b]}``. A text file holds
    one class a line, ``name``, ``name r g b`` or ``name #rrggbb``; empty lines and lines that start with ``//`` are
    skipped. Classes without a colour get one. Raises InputError.
    """
    text = str(name_or_file)
    if text.lower() in TABLES:
        return TABLES[text.lower()]
    path = Path(name_or_file)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe would be waited for, a device has no end
            what = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe or device"
            raise InputError("class file %s: expected a file, found %s; save it to a file first" % (path, what))
        if info.st_size > _MAX_FILE_BYTES:
            raise InputError("class file %s: expected at most 1 MiB, found %d bytes" % (path, info.st_size))
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError("class file %s: expected UTF-8 text or JSON, found other bytes" % path) from None
    except (OSError, ValueError) as error:
        raise InputError(
            "classes %r: expected cityscapes, camvid or a readable file, found none (%s)"
            % (text, getattr(error, "strerror", None) or error)
        ) from None
    where = "class file %s" % path
    rows = _from_json(content, where) if content.lstrip()[:1] in ("[", "{") else _from_text(content)
    return check_classes(_fill_colors(rows), where)


def _from_json(content: str, where: str) -> List[Tuple[str, Any]]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError("%s: not valid JSON (%s)" % (where, error)) from None
    if isinstance(data, dict) and isinstance(data.get("classes"), list):
        data = data["classes"]
    if not isinstance(data, list):
        raise InputError("%s: expected a list of classes, found %s" % (where, type(data).__name__))
    rows: List[Tuple[str, Any]] = []
    for index, item in enumerate(data):
        if isinstance(item, str):
            rows.append((item, None))
        elif isinstance(item, dict) and "name" in item and set(item) <= {"name", "color"}:
            rows.append((item["name"], item.get("color")))
        else:
            raise InputError(
                '%s: item %d: expected a name or {"name": ..., "color": [r, g, b]}, found %r'
                % (where, index, str(item)[:80])
            )
    return rows


def _from_text(content: str) -> List[Tuple[str, Any]]:
    rows: List[Tuple[str, Any]] = []
    for line in content.splitlines():
        line = line.strip()
        if not line or line.startswith("//"):
            continue
        triple = re.match(r"^(.*\S)[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})$", line)
        code = re.match(r"^(.*\S)[\s,]+#([0-9a-fA-F]{6})$", line)
        if triple:
            rows.append((triple.group(1), [int(triple.group(i)) for i in (2, 3, 4)]))
        elif code:
            rows.append((code.group(1), list(bytes.fromhex(code.group(2)))))
        else:
            rows.append((line, None))
    return rows


def _fill_colors(rows: Sequence[Tuple[str, Any]]) -> List[ClassInfo]:
    taken = {tuple(color) for _, color in rows if isinstance(color, list) and len(color) == 3 and _plain(color)}
    out = []
    step = 0
    for name, color in rows:
        while color is None:
            # Golden-ratio hues with varied value: neighbours in the table stay far apart in colour.
            hue = (step * 0.6180339887) % 1.0
            rgb = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * ((step // 3) % 2), 0.95 - 0.12 * (step % 5))
            step += 1
            guess = (int(rgb[0] * 255), int(rgb[1] * 255), int(rgb[2] * 255))
            if guess not in taken:
                taken.add(guess)
                color = list(guess)
        out.append(ClassInfo(name, tuple(color) if isinstance(color, list) else color))
    return out


def _plain(color: Sequence[Any]) -> bool:
    return all(type(v) is int for v in color)
