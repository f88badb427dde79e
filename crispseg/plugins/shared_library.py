"""Finding and opening the libraries that the package brings, with ctypes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Callable, List, Mapping, Sequence, Tuple

import crispseg.plugins
from crispseg.errors import EnvironmentMismatch


def library_places(environment: str, file_name: str) -> List[Path]:
    """Where a library may lie: what the variable names alone when it is set, else every directory of the package."""
    named = os.environ.get(environment)
    if named:
        return [Path(named)]
    return [Path(folder) / file_name for folder in crispseg.plugins.__path__]


def open_library(
    title: str,
    places: Sequence[Path],
    version_function: str,
    version: int,
    prototypes: Mapping[str, Tuple[Any, Any]],
    build_command: str,
) -> ctypes.CDLL:
    """The first library that is there, with its prototypes (name -> result type, argument types) declared.

    A function that it lacks is replaced by one that says so: an older library serves what does not need it.

    Raises:
        EnvironmentMismatch: no library, one that does not load, or one of another ABI version.
    """
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(str(place) for place in places)
        raise EnvironmentMismatch(f"{title} not found (looked at {looked}). Build it: {build_command}")
    try:
        library = ctypes.CDLL(str(path.resolve()))
        function = getattr(library, version_function)
        function.restype = ctypes.c_int
        found = function()
    except (OSError, AttributeError) as error:
        raise EnvironmentMismatch(f"{path} does not load: {error}. Rebuild it: {build_command}") from error
    if found != version:
        raise EnvironmentMismatch(f"{path} has ABI version {found}, expected {version}. Rebuild it: {build_command}")
    for name, (result, arguments) in prototypes.items():
        function = getattr(library, name, None)
        if function is None:
            setattr(library, name, _missing(path, name, build_command))
            continue
        function.restype = result
        function.argtypes = arguments
    return library


def _missing(path: Path, name: str, build_command: str) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise EnvironmentMismatch(f"{path} lacks {name}, it is too old. Rebuild it: {build_command}")

    return fail
