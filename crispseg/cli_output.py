"""What the command line prints: one JSON document or tables on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from crispseg.errors import CrispsegError, InputError, hide_passwords
from crispseg.files import require_writable

DEBUG = "CRISPSEG_DEBUG"
_PAGES = (".html", ".htm")
_WIDTH = 160  # of a table in a file or pipe, at most
_HANGUP = 129  # exit code after SIGHUP
# package that failed to import -> what to install
_PACKAGES = {
    "onnxruntime": "onnxruntime",
    "onnx": "onnx",
    "torch": "torch",
    "onnxscript": "onnxscript",
    "av": "av",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "tensorrt": "tensorrt",
    "numpy": "numpy",
}


class Interrupted(CrispsegError):
    """Ctrl-C or its like. (A plain KeyboardInterrupt would be swallowed by the parser, without a word.)"""

    def __init__(self, text: str) -> None:
        from crispseg.runtime.interrupt import exit_code

        super().__init__(text)
        self.exit_code = exit_code()


class Printed(InputError):
    """Something failed after the report was printed: stdout holds a whole document already."""


def execute(
    work: Callable[[Callable[..., None]], Dict[str, Any]],
    *,
    json: bool,
    title: str,
    report_file: Optional[Path] = None,
    show: Optional[Callable[[Dict[str, Any]], Any]] = None,
) -> Dict[str, Any]:
    """Runs a command's work and prints its report.

    Args:
        work: called with ``progress(done, total, text="")``; returns a report.
        json: print the report as JSON and nothing else on stdout.
        title: text before the progress bar.
        report_file: also write the report there: .json, or a page for .html.
        show: turns the report into something that rich prints; the report's tables without it.
    """
    from crispseg import report as reports

    if report_file is not None:
        check_report_file(report_file)
    # Libraries that print (exporters do) must not spoil the JSON document.
    with contextlib.redirect_stdout(sys.stderr), progress_bar(title) as progress:
        result = work(progress)
    failed = None
    if report_file is not None:
        try:
            if report_file.suffix.lower() in _PAGES:
                reports.write_text(report_file, reports.render_html(result))
            else:
                reports.write_json(report_file, result)
        except InputError as error:  # a full disk shall not cost the result of the work
            failed = error
    if json:
        print(reports.to_json(result), flush=True)
    else:
        from rich.console import Console

        # A file or pipe has no width: tables fold at a screen's there, and wide ones are cut into letters.
        console = Console(soft_wrap=False, highlight=False, width=_WIDTH if _widthless() else None)
        console.print(show(result) if show else reports.render_table(result))
        if report_file is not None and failed is None:
            console.print(f"report: {report_file}", markup=False)
    if failed is not None:
        raise Printed(str(failed))
    return result


def warn(text: str) -> None:
    """Prints a warning on stderr while the work goes on."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it: no reason to stop
        print(f"warning: {text}", file=sys.stderr, flush=True)


def check_report_file(path: Path) -> None:
    """Refuses an impossible --report before the work is done. Raises InputError."""
    if path.is_dir():
        raise InputError(f"--report {path}: expected a file, found a folder; name a file in it")
    ending = path.suffix.lower()
    if ending not in (".json", *_PAGES):
        found = f"the ending {ending}" if ending else "no ending"
        raise InputError(f"--report {path}: expected FILE.json or FILE.html, found {found}; name it so")
    require_writable(path, "--report")
    if path.exists() and not _is_report(path):
        other = "JSON file" if ending == ".json" else "page"
        raise InputError(
            f"--report {path}: expected a new file or an older report, found another {other}; choose another name"
        )


def _is_report(path: Path) -> bool:
    """Whether a report may replace it: one of ours, or nothing that anybody misses. Its start says."""
    try:
        with open(str(path), "rb") as stream:
            start = stream.read(200)
    except OSError:
        return True  # writing it will tell
    if not start.strip():
        return True
    if path.suffix.lower() in _PAGES:
        return b"<title>crispseg" in start
    return b'"schema"' in start and b'"kind"' in start and b'"mask-refiner"' not in start


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[..., None]]:
    """Gives ``progress(done, total, text="")``: a bar on stderr that vanishes at the end; silent without a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_, **__: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, text="")

        def progress(done: float = 0, total: Optional[float] = None, text: str = "") -> None:
            whole = None if total is None else (total if float(total).is_integer() else round(total, 1))
            bar.update(task, completed=round(done, 1) if isinstance(done, float) else done, total=whole, text=text)

        yield progress


def failure(error: BaseException) -> Optional[Dict[str, Any]]:
    """What to tell about an exception: {"type", "message", "exit_code"}; None when there is nothing to say."""
    kind, code = type(error).__name__, 2
    text = " ".join(str(error).split())
    if isinstance(error, CrispsegError):
        code = error.exit_code
    elif isinstance(error, KeyboardInterrupt) or kind == "Abort":
        from crispseg.runtime.interrupt import exit_code

        text, code = "interrupted", exit_code()
    elif hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the parser's own errors
        text, code = " ".join(error.format_message().replace("Value error, ", "").split()), error.exit_code
        context = getattr(error, "ctx", None)
        text = text.rstrip(".") + (f"; see {context.command_path} --help" if context else "")
    elif isinstance(error, BrokenPipeError):
        return None
    elif isinstance(error, ImportError) and (error.name or "").split(".")[0] in _PACKAGES:
        package = _PACKAGES[(error.name or "").split(".")[0]]
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({text})"
        text = f"this command needs {package}, which {reason}; run: {_python()} -m pip install {package}"
    elif isinstance(error, MemoryError):
        text = f"out of memory{': ' + text if text else ''}; close programs or use smaller frames (crispseg doctor)"
    elif isinstance(error, OSError) and error.errno == errno.EIO and _hung_up():
        text, code = "interrupted", _HANGUP  # the terminal is gone, and takes no progress bar any more
    elif isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        text = f"{name}{error.strerror or text or kind}; check that the place exists, is writable and has room"
    else:
        where = traceback.extract_tb(error.__traceback__)[-1:] if error.__traceback__ else []
        at = f" at {Path(where[0].filename).name}:{where[0].lineno}" if where else ""
        text = (
            f"unexpected {kind}: {text or 'no message'}{at}; this is a fault of crispseg, please report it with the "
            f"output of crispseg doctor --json ({DEBUG}=1 shows where it happened)"
        )
        code = 1
    return {"type": kind, "message": hide_passwords(text), "exit_code": code}


def _widthless() -> bool:
    return not sys.stdout.isatty() and "COLUMNS" not in os.environ


def _hung_up() -> bool:
    from crispseg.runtime.interrupt import exit_code

    return exit_code() == _HANGUP


def _python() -> str:
    """How to call the interpreter that runs this: by name where the shell finds that very one, else by its path."""
    name = Path(sys.executable).name
    return name if shutil.which(name) == sys.executable else sys.executable


def report_failure(error: BaseException, json: bool) -> int:
    """Prints one line on stderr (and the JSON document on stdout when asked for); returns the exit code."""
    found = failure(error)
    if os.environ.get(DEBUG) not in (None, "", "0"):
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        print(hide_passwords("".join(lines)), end="", file=sys.stderr)
    if found is None:
        _give_up_stdout()
        return 0
    if json and not isinstance(error, Printed):
        from crispseg.report import SCHEMA, to_json

        with contextlib.suppress(OSError):
            print(to_json({"schema": SCHEMA, "kind": "error", "error": found}), flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        _give_up_stdout()
    try:
        print(f"error: {found['message']}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (stays open until the end)
    return int(found["exit_code"])


def _give_up_stdout() -> None:
    """The reader of our output went away or its disk is full; the interpreter must not fail on it again at exit."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (stays open until the end)


def show_doctor(result: Dict[str, Any]) -> Any:
    """The doctor's report: what can be done, then every check with its fix."""
    from rich.console import Group
    from rich.text import Text

    lines: List[Text] = [Text("This machine can", style="bold")]
    for item in result["can"]:
        needs = f": needs {', '.join(item['missing'])}" if item["missing"] else ""
        lines.append(_mark(item["ok"], item["what"] + needs, True))
    lines.append(Text("\nFound", style="bold"))
    for check in result["checks"]:
        line = _mark(check["ok"], f"{check['name']}: {check['found']}", check["needed"])
        if check["fix"]:
            line.append(f"\n      fix: {check['fix']}", style="cyan")
        lines.append(line)
    return Group(*lines)


def show_bundle(result: Dict[str, Any]) -> Any:
    """The report of inspect and export in a screenful; --json has the rest (all settings, hashes, provenance)."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from crispseg.report import format_value

    bundle, refiner = result["bundle"], result["settings"].get("refiner")
    parts: List[Any] = [Text(f"{text}", style="bold white on red") for text in result["warnings"]]
    parts.append(Text(f"{bundle['name']}: frames of {bundle['size']}, {bundle['mib']:.1f} MiB", style="bold"))
    parts.append(Text(f"{bundle['path']}, SHA-256 {bundle['sha256'][:16]}"))
    table = Table("part", "network", "input", "parameters", "ops", "file", "MiB", box=box.SIMPLE_HEAD, padding=(0, 1))
    sizes = {item["file"]: item["mib"] for item in result["files"]}
    for row in result["networks"]:
        parameters = "-" if row["parameters"] is None else f"{row['parameters']:,}"
        cells = (row["architecture"], row["size"], parameters, format_value(row["nodes"]), row["file"])
        table.add_row(row["part"], *cells, format_value(sizes.pop(row["file"], None)))
    for name, mib in sizes.items():
        table.add_row("", "", "", "", "", name, format_value(mib))
    parts.append(table)
    for part in ("base", "baseline", "refiner"):
        note = result["provenance"].get(part)
        parts.extend(Text(text, style=style) for text, style in _notes(part, note if isinstance(note, dict) else {}))
    if refiner:
        keys = ("planes", "repeats", "features", "extent", "ensembler", "upsample", "threshold", "capacity")
        parts.append(Text("refiner: " + "; ".join(f"{key} {format_value(refiner[key])}" for key in keys)))
    parts.extend(Text(text) for text in _calibration_notes(result["calibration"]))
    parts.append(Text(f"{len(result['classes'])} classes: " + ", ".join(item["name"] for item in result["classes"])))
    return Group(*parts)


def _calibration_notes(calibration: Optional[Dict[str, Any]]) -> List[str]:
    """Where int8 networks came from, and what they cost. The gate's record may hold anything."""
    from crispseg.report import format_value

    if calibration is None:
        return []
    lines = [
        f"{role}, int8: {net['method']} on {net['image_count']} {'random' if net['synthetic'] else 'real'} images, "
        f"{100 * net['macs_share']:.1f} % of the multiply-adds, {net['excluded']} layers in float"
        for role, net in calibration["networks"].items()
    ]
    gate = calibration["gate"] or {}
    passed = "passed" if gate.get("passed") is True else "NOT PASSED"
    miou = gate.get("miou")
    if isinstance(miou, dict):
        lines.append(f"gate {passed}: mIoU {format_value(miou.get('before'))} to {format_value(miou.get('after'))}")
    elif "agreement" in gate:
        lines.append(f"gate {passed}: {format_value(gate['agreement'])} % of the labels as in float")
    return lines


def _notes(part: str, note: Dict[str, Any]) -> List[Tuple[str, str]]:
    """(line, style) of what the export compared, assumed, and was forced to keep. Provenance may hold anything."""
    from crispseg.engines.tensorrt.operators import advice

    lines = []
    parity = note.get("parity")
    if isinstance(parity, dict):
        figures = "; ".join(f"{k} {v}" for k, v in parity.items() if k not in ("hop", "shape"))
        lines.append((f"{part}, {parity.get('hop', 'compared')}: {figures}", ""))
    if part == "base" and isinstance(note.get("assumed"), list):
        lines += [(f"assumed: {text}", "yellow") for text in note["assumed"]]
    if isinstance(note.get("padding"), str):
        lines.append((f"{part}, padding {note['padding']}", ""))
    gaps = note.get("tensorrt_unsupported")
    for release, nodes in gaps.items() if part == "base" and isinstance(gaps, dict) else ():
        named = [str(node) for node in nodes] if isinstance(nodes, list) else []
        lines += [(text, "yellow") for text in advice(str(release), named)]
    if note.get("forced"):
        lines.append((f"FORCED: {note['forced']}", "bold red"))
    return lines


def show_bases(result: Dict[str, Any]) -> Any:
    """The bases in a table, then what belongs to several of them; --json has the rest (normalisation, dropped keys)."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("base", no_wrap=True)
    for name in ("parameters, M", "GMAC at 1024x2048", "stride", "classes"):
        table.add_column(name, justify="right")
    published = "Published by the authors: mIoU, frames/s"
    notes: Dict[str, Dict[str, List[str]]] = {published: {}, "Papers": {}, "Code": {}, "Checkpoints": {}}
    for row in result["bases"]:
        for f in row["figures"]:
            speeds = " / ".join(f"{fps:g} on {device}" for device, fps in f["fps"].items())
            size = f" at {f['size']}" if f["size"] else ""
            text = f"{f['dataset']} {f['miou']:g}{size}{'; ' if speeds else ''}{speeds} ({f['source']})"
            notes[published].setdefault(text, []).append(row["name"])
        million = "-" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f}"
        gmac = "-" if row["gmac"] is None else f"{row['gmac']:.1f}"
        classes = ", ".join(map(str, row["classes"])) or "any"
        table.add_row(row["name"], million, gmac, str(row["stride"]), classes)
        for title, key in (("Papers", "paper"), ("Code", "code"), ("Checkpoints", "checkpoint")):
            if row[key]:
                notes[title].setdefault(row[key], []).append(row["name"])
    parts: List[Any] = [table]
    for title, entries in notes.items():
        parts.append(Text(title, style="bold"))
        parts.extend(Text(f"  {', '.join(names)}: {text}") for text, names in entries.items())
    return Group(*parts)


def _mark(ok: bool, text: str, needed: bool) -> Any:
    from rich.text import Text

    sign, style = ("yes", "green") if ok else ("no ", "red" if needed else "yellow")
    return Text.assemble("  ", (sign, style), " ", text)
