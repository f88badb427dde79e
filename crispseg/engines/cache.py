"""Compiled artefacts beside a bundle's networks: ``bundle/engines/<key>/`` with a manifest.

The key is the SHA-256 of everything that the artefact depends on: the network's files, what was asked for, and the
environment that it only works in. An artefact of another environment is told apart before a byte of it is used, and one
that was cut short or altered is refused by its hash. (The hash guards against damage, not against somebody who can also
write the manifest.) Running never builds: what is missing is an error with the command that makes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

import numpy as np

from crispseg.bundle import Bundle
from crispseg.bundle_fields import Fields, parse_json
from crispseg.bundle_schema import plain_name
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.files import hash_file, hash_stream

KEY_SCHEMA = 1
FOLDER = "engines"
MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 20
_KEY = re.compile(r"[0-9a-f]{64}\Z")
_HASH = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Identity:
    """What an artefact is made from and for. All values are plain JSON.

    ``role``: "base", "refiner", "kernels". ``sources``: file of the bundle -> SHA-256. ``spec``: what was asked for
    (precision, workspace, ...). ``environment``: GPU, compute capability, TensorRT, CUDA, plugin hash, ...
    """

    backend: str
    role: str
    sources: Mapping[str, str]
    spec: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """SHA-256 (hex) of the identity and of the version of its form."""
        text = json.dumps({"schema": KEY_SCHEMA, **_plain(asdict(self))}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Artefact:
    """A checked artefact: its directory, identity, and what the build wrote about itself."""

    path: Path
    identity: Identity
    files: Mapping[str, Tuple[str, int]]
    facts: Mapping[str, Any]

    def read(self, name: str) -> bytes:
        """Content of one of its files. Raises BundleError when it was cut short or altered."""
        with self._open(name) as stream:
            data = stream.read()
        self._same(name, hashlib.sha256(data).hexdigest())
        return data

    def map(self, name: str) -> np.ndarray:
        """One of its files as uint8 memory that is read when it is touched. Raises BundleError like ``read``."""
        with self._open(name) as stream:
            self._same(name, hash_stream(stream))
            return np.memmap(stream, np.uint8, "r") if self.files[name][1] else np.empty(0, np.uint8)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        path = self.path / name
        if name not in self.files:
            raise BundleError("%s: the manifest lists no such file; %s" % (path, self.rebuild))
        size = self.files[name][1]
        try:
            info = os.lstat(str(path))
            if not stat.S_ISREG(info.st_mode):
                raise BundleError("%s: expected a regular file; %s" % (path, self.rebuild))
            if info.st_size != size:
                what = "truncated" if info.st_size < size else "altered"
                raise BundleError("%s: expected %d bytes, found %d (%s); %s"
                                  % (path, size, info.st_size, what, self.rebuild))  # fmt: skip
            with open(str(path), "rb") as stream:
                yield stream
        except OSError as error:
            raise BundleError("%s: cannot be read: %s; %s" % (path, error.strerror or error, self.rebuild)) from None

    def _same(self, name: str, found: str) -> None:
        expected = self.files[name][0]
        if found != expected:
            raise BundleError("%s: expected SHA-256 %s..., found %s... (altered); %s"
                              % (self.path / name, expected[:12], found[:12], self.rebuild))  # fmt: skip

    @property
    def rebuild(self) -> str:
        """The advice to build it again."""
        return "run `%s`" % rebuild_command(self.path.parent.parent, self.identity)


def rebuild_command(bundle: Path, identity: Identity) -> str:
    """The command that makes an artefact of this identity."""
    precision = identity.spec.get("precision")
    asked = " --precision %s" % precision if precision else ""
    options = {"baseline": " --baseline", "refiner": " --refiner-engine"}
    asked += "" if identity.backend == "native" else options.get(identity.role, "")
    return "crispseg build %s --backend %s%s" % (bundle, identity.backend, asked)


def sources(bundle: Bundle, *names: str) -> Dict[str, str]:
    """SHA-256 of these network files and of every weight file of the bundle, from its (checked) manifest."""
    shared = [name for name in bundle.files if not name.endswith(".onnx")]
    return {name: bundle.files[name].sha256 for name in sorted({*names, *shared})}


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file, for environments (a plugin library). Raises EnvironmentMismatch."""
    try:
        return hash_file(path)
    except OSError as error:
        raise EnvironmentMismatch("%s: cannot be read: %s" % (path, error.strerror or error)) from None


def store(
    bundle: Path,
    identity: Identity,
    files: Mapping[str, Union[bytes, memoryview]],
    facts: Optional[Mapping[str, Any]] = None,
) -> Artefact:
    """Write an artefact; one of the same key is replaced. An error leaves what was there.

    Raises:
        InputError: the place cannot be written, or ``facts`` is not plain JSON.

    """
    target = bundle / FOLDER / identity.key
    partial = target.with_name("%s.%d.partial" % (target.name, os.getpid()))
    listed = {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    try:
        manifest = {
            "schema": KEY_SCHEMA,
            "identity": _plain(asdict(identity)),
            "files": {name: {"sha256": sha, "bytes": size} for name, (sha, size) in sorted(listed.items())},
            "facts": _plain(dict(facts or {})),
        }
        partial.mkdir(parents=True)
        for name, data in files.items():
            _write(partial / _name(name, str(target)), data)
        _write(partial / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode("ascii"))
        if target.exists():
            shutil.rmtree(str(target))
        os.rename(str(partial), str(target))
    except OSError as error:
        raise InputError("%s: cannot be written: %s; free space or copy the bundle to another place"
                         % (target, error.strerror or error)) from None  # fmt: skip
    finally:
        shutil.rmtree(str(partial), ignore_errors=True)
    return load(target)


def load(path: Path) -> Artefact:
    """Read and check the manifest of an artefact's directory (its files are checked when read). Raises BundleError."""
    where = str(path / MANIFEST)
    try:
        mode = os.lstat(where).st_mode
        if not stat.S_ISREG(mode):  # a pipe would be waited for, for ever
            found = "a symbolic link" if stat.S_ISLNK(mode) else "a folder, pipe or device"
            raise BundleError("%s: expected a regular file, found %s" % (where, found))
        with open(where, "rb") as stream:
            raw = stream.read(_MAX_MANIFEST + 1)
    except OSError as error:
        raise BundleError("%s: cannot be read: %s; build it again" % (where, error.strerror or error)) from None
    if len(raw) > _MAX_MANIFEST:
        raise BundleError("%s: expected at most %d bytes, found more" % (where, _MAX_MANIFEST))
    data = parse_json(raw, where)
    if isinstance(data, dict) and data.get("schema") != KEY_SCHEMA:
        raise BundleError("%s: expected schema %d, found %s; build it again with this version of crispseg"
                          % (where, KEY_SCHEMA, repr(data.get("schema"))[:40]))  # fmt: skip
    top = Fields(data, where, "", ("schema", "identity", "files", "facts"))
    inner = Fields(top.raw("identity"), where, "identity", ("backend", "role", "sources", "spec", "environment"))
    maps = {name: inner.raw(name) for name in ("sources", "spec", "environment")}
    files, facts = top.raw("files"), top.raw("facts")
    for name, value in [*maps.items(), ("files", files), ("facts", facts)]:
        if not isinstance(value, dict):
            raise BundleError("%s: %s: expected an object, found %s" % (where, name, type(value).__name__))
    identity = Identity(inner.text("backend"), inner.text("role"), **maps)
    if not _KEY.match(path.name) or identity.key != path.name:
        raise BundleError("%s: expected the identity with SHA-256 %s, found %s (altered, or renamed); delete %s and "
                          "build it again" % (where, path.name[:12], identity.key[:12], path))  # fmt: skip
    listed = {}
    for name, item in files.items():
        _name(name, where)
        entry = Fields(item, where, "files[%s]" % name, ("sha256", "bytes"))
        sha = entry.text("sha256")
        if not _HASH.match(sha):
            raise BundleError("%s: files[%s].sha256: expected 64 lower-case hex digits" % (where, name))
        listed[name] = (sha, entry.integer("bytes", 0, 1 << 40))
    return Artefact(path, identity, listed, facts)


def find(bundle: Path, wanted: Identity) -> Artefact:
    """The newest artefact that does what is wanted here.

    Args:
        bundle: directory of the bundle.
        wanted: sources and environment must be equal; of ``spec`` every entry that is given (an engine built with
            another workspace serves as well, so leave that out).

    Raises:
        EnvironmentMismatch: there is none; the message says what the nearest one differs in, and the command.
        BundleError: the one that fits has a damaged manifest.
    """
    command = rebuild_command(bundle, wanted)
    fitting: List[Artefact] = []
    nearest: Optional[List[str]] = None
    broken: Optional[BundleError] = None
    for path in _folders(bundle / FOLDER):
        try:
            artefact = load(path)
        except BundleError as error:
            broken = error
            continue
        if (artefact.identity.backend, artefact.identity.role) != (wanted.backend, wanted.role):
            continue
        differs = differences(wanted, artefact.identity)
        if not differs:
            fitting.append(artefact)
        elif nearest is None or len(differs) < len(nearest):
            nearest = differs
    if fitting:
        return max(fitting, key=lambda item: (os.stat(str(item.path / MANIFEST)).st_mtime, item.path.name))
    what = "%s engine of the %s" % (wanted.backend, wanted.role)
    if nearest is not None:
        raise EnvironmentMismatch("%s in %s: was built for something else: %s; run `%s`"
                                  % (what, bundle, "; ".join(nearest), command))  # fmt: skip
    if broken is not None:
        raise EnvironmentMismatch("%s: none in %s that can be used (%s); run `%s`" % (what, bundle, broken, command))
    raise EnvironmentMismatch("%s: none in %s; run `%s`" % (what, bundle, command))


def differences(wanted: Identity, found: Identity) -> List[str]:
    """What an artefact differs in, as "GPU: expected A, found B"; of the spec only what ``wanted`` names."""
    out = []
    short = [{key: str(value)[:12] for key, value in item.sources.items()} for item in (wanted, found)]
    for title, want, have in (
        ("", dict(wanted.environment), dict(found.environment)),
        ("", dict(wanted.spec), {key: found.spec.get(key) for key in wanted.spec}),
        ("network ", short[0], short[1]),
    ):
        for key in sorted({*want, *have}):
            if _plain(want.get(key)) != have.get(key):
                out.append("%s%s: expected %s, found %s" % (title, key, want.get(key), repr(have.get(key))[:80]))
    return out


def require_room(bundle: Path) -> None:
    """Raise InputError unless artefacts can be written into the bundle. Asked before a long build."""
    from crispseg.files import require_writable

    require_writable(bundle / FOLDER / "key", "bundle")


def _name(name: Any, where: str) -> str:
    if name == MANIFEST:
        raise BundleError("%s: files: %s is the manifest's own name" % (where, MANIFEST))
    return plain_name(name, "files", where)


def _folders(folder: Path) -> List[Path]:
    try:
        names = sorted(os.listdir(str(folder)))
    except OSError:
        return []
    return [folder / name for name in names if _KEY.match(name) and (folder / name).is_dir()]


def _write(path: Path, data: Union[bytes, memoryview]) -> None:
    with open(str(path), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _plain(value: Any) -> Any:
    """As JSON gives it back. Raises InputError for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError("engine manifest: %s" % error) from None
