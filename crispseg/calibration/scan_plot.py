"""A scan as a picture: one bar for each layer, the costliest on top. SVG, so that no plotting library is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = (
    "text { font: 12px system-ui, sans-serif; fill: #1c2430 } .dim { fill: #667084 } rect { fill: #3b73c4 } "
    "rect.out { fill: #c4453b } .back { fill: #ffffff } "
    "@media (prefers-color-scheme: dark) { text { fill: #e6e9ef } .dim { fill: #98a2b3 } .back { fill: #14181f } }"
)
_ROW, _LEFT, _BAR = 18, 300, 420
_LONGEST = 44  # characters of a name


def svg(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The picture.

    Args:
        rows: ``layer``, ``changed`` (percent), ``macs`` (percent) and ``exclude`` (bool) of each, the costliest first.
        title: text above.
    """
    top = max((float(row["changed"]) for row in rows), default=0.0) or 1.0
    height = _ROW * len(rows) + 84
    width = _LEFT + _BAR + 160
    proposed = "proposed to stay float" if any(row["exclude"] for row in rows) else "none has to stay float"
    parts = [
        f'<rect class="back" width="{width}" height="{height}"/>',
        f'<text x="12" y="22" style="font-weight:600">{escape(title)}</text>',
        '<text class="dim" x="12" y="40">percent of the pixels whose class changes when this layer alone is int8; in '
        "brackets its share of the multiply-adds</text>",
        f'<text class="dim" x="12" y="56">red: {proposed}</text>',
    ]
    for index, row in enumerate(rows):
        y = 70 + index * _ROW
        name = str(row["layer"])
        shown = name if len(name) <= _LONGEST else name[: _LONGEST // 2 - 1] + ".." + name[1 - _LONGEST // 2 :]
        bar = max(0.5, _BAR * float(row["changed"]) / top)
        kind = ' class="out"' if row["exclude"] else ""
        parts.append(
            f'<g><title>{escape(name)}</title><text x="{_LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(shown)}'
            f'</text><rect{kind} x="{_LEFT}" y="{y + 1}" width="{bar:.1f}" height="{_ROW - 5}"/>'
            f'<text x="{_LEFT + bar + 6:.1f}" y="{y + 11}">{float(row["changed"]):.3g} '
            f'<tspan class="dim">({float(row["macs"]):.2g} %)</tspan></text></g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(title)}"><style>{_STYLE}</style>' + "\n".join(parts) + "</svg>\n"
    )
