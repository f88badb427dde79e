"""The HTML form of a report: one self-contained page, light and dark, with bars as inline SVG."""

from __future__ import annotations

from html import escape

from crispseg.report import ACCURACY_PARTS, sections

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #667084; --line: #d8dde6; --back: #ffffff; --bar: #3b73c4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --dim: #98a2b3; --line: #333b49; --back: #14181f; --bar: #6fa0e6 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
div.wide { overflow-x: auto }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
        text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
td:first-child, th:first-child, table.text td { text-align: left } th { color: var(--dim); font-weight: 500 }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font: 13px system-ui, sans-serif }
rect { fill: var(--bar) } p.warning { border-left: 4px solid #d08700; padding-left: .6rem }
dt { font-weight: 600; margin-top: .5rem } dd { margin: 0; color: var(--dim) }
"""
# Stages that hold others: paler bars, so that what adds up stands out.
_SUMS = ("refine", "gpu_compute", "host_latency", "total", "cpu")
_PALETTE = ("#8a94a6", "#3b73c4", "#c98a2b")


def page(report: dict) -> str:
    """The whole page. Every text from the report is escaped."""
    bundle = report.get("bundle")
    name = bundle.get("name", "") if isinstance(bundle, dict) else (bundle or "")
    title = f"crispseg {report.get('kind', 'report')} {name}".strip()
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f'<p class="warning">{escape(str(text))}</p>' for text in report.get("warnings", ())]
    stages = report.get("stages")
    if isinstance(stages, dict):
        medians = [(stage, [times.get("p50")]) for stage, times in stages.items() if isinstance(times, dict)]
        sums = [stage for stage in stages if stage in _SUMS]
        body.append(_bars("Median stage times, ms", medians, (), sums))
        if sums:
            body.append(f"<p>Paler: {escape(', '.join(sums))}, which hold or join other stages.</p>")
    if report.get("kind") == "scan":
        rows = [(row["layer"], [row["changed"]]) for row in report["layers"]]
        body.append(_bars("Pixels that change when this layer alone is int8, percent", rows, ()))
    parts = [part for part in ACCURACY_PARTS if isinstance(report.get(part), dict) and "miou" in report[part]]
    if parts:
        rows = [
            ("mIoU", [report[p].get("miou") for p in parts]),
            ("boundary IoU", [report[p].get("boundary_iou") for p in parts]),
        ]
        rows += [
            (c, [report[p].get("per_class", {}).get(c) for p in parts]) for c in report[parts[0]].get("per_class", {})
        ]
        body.append(_bars("Accuracy, percent", rows, parts))
    for heading, columns, rows in sections(report):
        body.append(_table(heading, columns, rows))
    if report.get("definitions"):
        terms = "".join(
            f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in report["definitions"].items()
        )
        body.append(f"<h2>Definitions</h2><dl>{terms}</dl>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        "<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _table(heading: str, columns: tuple, rows: list) -> str:
    head = "<tr>" + "".join(f"<th>{escape(c)}</th>" for c in columns) + "</tr>" if any(columns) else ""
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = "" if head else ' class="text"'
    return f'<h2>{escape(heading)}</h2><div class="wide"><table{kind}>{head}{cells}</table></div>'


def _bars(heading: str, rows: list, series: tuple | list, pale: tuple | list = ()) -> str:
    """Horizontal bars: rows of (label, values), one bar a series; those of the rows ``pale`` stand back."""
    values = [v for _, vs in rows for v in vs if isinstance(v, (int, float))]
    top = max(values, default=0) or 1.0
    step = 16 * max(1, len(series)) + 8
    height = step * len(rows) + 8
    marks = []
    for index, (label, row) in enumerate(rows):
        y = index * step + 4
        marks.append(f'<text x="150" y="{y + step / 2:.0f}" text-anchor="end">{escape(str(label))}</text>')
        for offset, value in enumerate(row):
            if not isinstance(value, (int, float)):
                continue
            width, at = 440 * max(0.0, value) / top, y + 16 * offset
            fill = f' style="fill:{_PALETTE[offset % 3]}"' if series else ' opacity="0.4"' if label in pale else ""
            marks.append(
                f'<rect x="160" y="{at + 2}" width="{width:.1f}" height="12"{fill}/>'
                f'<text x="{166 + width:.1f}" y="{at + 13}">{value:.2f}</text>'
            )
    legend = " ".join(f'<span style="color:{_PALETTE[i % 3]}">&#9632;</span> {escape(n)}' for i, n in enumerate(series))
    return (
        f'<h2>{escape(heading)}</h2><p>{legend}</p><svg role="img" aria-label="{escape(heading)}" width="680" '
        f'height="{height}" viewBox="0 0 680 {height}">{"".join(marks)}</svg>'
    )
