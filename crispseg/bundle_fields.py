"""Checked access to the fields of an untrusted JSON manifest. Every failure is a BundleError that names the field."""

from __future__ import annotations

import json
import math
from typing import Any, Dict, List, Sequence, Tuple

from crispseg.errors import BundleError

MAX_TEXT = 200


def parse_json(raw: bytes, where: str) -> Any:
    """Parse UTF-8 JSON strictly: no duplicate keys, no NaN or Infinity, no runaway nesting or numbers.

    Raises:
        BundleError: it is not; ``where`` is the file that the message names.
    """

    def pairs(items: List[Tuple[str, Any]]) -> Dict[str, Any]:
        out: Dict[str, Any] = {}
        for key, value in items:
            if key in out:
                raise BundleError("%s: field %r stands twice; keep one" % (where, key[:80]))
            out[key] = value
        return out

    def constant(text: str) -> Any:
        raise BundleError("%s: expected finite numbers, found %s" % (where, text))

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError:
        raise BundleError("%s: expected UTF-8 JSON, found other bytes (truncated or altered)" % where) from None
    except (ValueError, RecursionError) as error:
        raise BundleError(
            "%s: not valid JSON (%s); copy or export the bundle again" % (where, str(error)[:120])
        ) from None


class Fields:
    """The fields of one object. BundleErrors: unknown and missing ones; in each getter, a wrong type or range."""

    def __init__(self, data: Any, where: str, key: str, allowed: Sequence[str]) -> None:
        self.where = where
        self.key = key
        if not isinstance(data, dict):
            raise BundleError("%s: %s: expected an object, found %s" % (where, key or "top level", _kind(data)))
        unknown = sorted(set(data) - set(allowed))
        missing = [item for item in allowed if item not in data]
        if unknown or missing:
            parts = []
            if missing:
                parts.append("missing field%s %s" % ("s" if len(missing) > 1 else "", ", ".join(missing[:5])))
            if unknown:
                names = ", ".join(ascii(item)[1:-1][:40] for item in unknown[:5])
                parts.append("unknown field%s %s" % ("s" if len(unknown) > 1 else "", names))
            raise BundleError("%s: %s: %s; export the bundle again" % (where, key or "top level", "; ".join(parts)))
        self._data = data

    def raw(self, name: str) -> Any:
        """The value as parsed."""
        return self._data[name]

    def _fail(self, name: str, expected: str) -> BundleError:
        full = "%s.%s" % (self.key, name) if self.key else name
        return BundleError("%s: %s: expected %s, found %s" % (self.where, full, expected, _kind(self._data[name])))

    def text(self, name: str) -> str:
        """A printable string of 1..200 characters."""
        value = self._data[name]
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
            raise self._fail(name, "1 to %d printable characters" % MAX_TEXT)
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """An integer in low..high (a JSON boolean is none)."""
        value = self._data[name]
        if type(value) is not int or not low <= value <= high:
            raise self._fail(name, "an integer from %d to %d" % (low, high))
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._data[name]
        if type(value) is not bool:
            raise self._fail(name, "true or false")
        return value

    def choice(self, name: str, options: Sequence[str]) -> str:
        """One of the strings."""
        value = self._data[name]
        if not isinstance(value, str) or value not in options:
            raise self._fail(name, " or ".join(options))
        return value

    def items(self, name: str, low: int, high: int) -> List[Any]:
        """A list with low..high items, unchecked inside."""
        value = self._data[name]
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise self._fail(name, "a list of %d to %d items" % (low, high))
        return value

    def numbers(
        self,
        name: str,
        count_low: int,
        count_high: int,
        low: float,
        high: float,
        whole: bool = False,
        scalar: bool = False,
    ) -> List[float]:
        """A list of finite numbers in low..high, integers when ``whole``; ``scalar``: one bare number."""
        values = [self._data[name]] if scalar else self.items(name, count_low, count_high)
        for value in values:
            ok = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
            if not ok or not low <= value <= high:
                raise self._fail(name, "%s from %g to %g" % ("integers" if whole else "numbers", low, high))
        return [value if whole else float(value) for value in values]


def _kind(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "%s of %d" % ("an object" if isinstance(value, dict) else "a list", len(value))
    text = ascii(value) if isinstance(value, (str, float, bool)) or value is None else str(type(value).__name__)
    if type(value) is int:
        # str() of a huge integer is refused by newer Pythons.
        text = str(value) if value.bit_length() < 200 else "an integer of %d bits" % value.bit_length()
    return text[:60]
