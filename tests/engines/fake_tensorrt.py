"""A stand-in for the tensorrt module, made from the recorded API of one release (tests/data/tensorrt).

Every class, method, keyword, property and enum member is there exactly when the release has it: anything else raises
AttributeError or TypeError, as the real bindings do. Calls are recorded; what they do is in fake_tensorrt_behaviour.py.
"""

from __future__ import annotations

import enum
import gzip
import json
import types
from pathlib import Path

from fake_tensorrt_behaviour import Behaviour, Rejected

DATA = Path(__file__).parents[1] / "data" / "tensorrt"
VERSIONS = ("8.5.3", "8.6.1", "10.0.1", "10.3.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106")


def surface(version):
    """The recorded API of a release."""
    with gzip.open(DATA / f"api-{version}.json.gz") as stream:
        return json.loads(stream.read())


def split_arguments(text):
    """ "self: A, b: x[y, z] = 1" -> [("self", "A", False), ("b", "x[y, z]", True)]."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text + ","):
        depth += c in "[(<{"
        depth -= c in "])}" or (c == ">" and text[i - 1 : i + 1] != "->" and depth > 0)
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    found = []
    for part in filter(None, parts):
        head, equals, _ = part.partition(" = ")
        name, _, kind = head.partition(":")
        found.append((name.strip(), kind.strip(), bool(equals)))
    return found


class Signature:
    """One overload: names, kinds and defaults of the arguments behind self, and what comes back."""

    def __init__(self, text, method=True):
        body, _, result = text.rpartition(") -> ")
        self.text, self.result = text, result.strip()
        arguments = split_arguments(body.partition("(")[2])
        self.arguments = arguments[1:] if method and arguments and arguments[0][0] in ("self", "this") else arguments

    def bind(self, module, args, kwargs):
        """name -> value; None when the call does not fit."""
        if len(args) > len(self.arguments):
            return None
        names = [a[0] for a in self.arguments]
        bound = dict(zip(names, args))
        for name, value in kwargs.items():
            if name not in names or name in bound:
                return None
            bound[name] = value
        for name, kind, optional in self.arguments:
            if name not in bound:
                if not optional:
                    return None
            elif not fits(module, kind, bound[name], optional):
                return None
        return bound


def fits(module, kind, value, optional=False):
    """Whether pybind11 would convert the value."""
    kind = kind.replace("nvinfer1::", "").replace("nvonnxparser::", "")
    if optional and value is None:
        return True
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if "SupportsInt" in kind or kind == "int":
        return isinstance(value, int) and not isinstance(value, enum.Enum)
    if "SupportsFloat" in kind or kind == "float":
        return isinstance(value, (int, float))
    if kind == "Dims":
        return isinstance(value, (tuple, list)) or type(value).__name__ == "Dims"
    if kind in ("tuple", "list"):
        return isinstance(value, __builtins__[kind] if isinstance(__builtins__, dict) else getattr(__builtins__, kind))
    if "uffer" in kind:
        return isinstance(value, (bytes, bytearray, memoryview))
    known = getattr(module, kind, None)
    return not isinstance(known, type) or isinstance(value, known)


def make(version, behave=None):
    """A module that looks like tensorrt ``version``. ``behave``: what an instance of Behaviour does."""
    api = surface(version)
    module = types.ModuleType("tensorrt")
    module.__version__ = api["version"]
    behaviour = (behave or Behaviour)(module, version)
    module.behaviour, module.calls = behaviour, behaviour.calls
    for name, record in api["classes"].items():
        setattr(module, name, build_class(module, name, record, behaviour))
    for name, texts in api["functions"].items():
        if texts and not texts[0].startswith("python:"):
            setattr(module, name, function(module, name, [Signature(t, False) for t in texts], behaviour))
    return module


def build_class(module, name, record, behaviour):
    if "enum" in record:
        return enum.IntEnum(name, sorted(record["enum"].items(), key=lambda item: item[1])) if record["enum"] else None
    body = {"__module__": "tensorrt", "_surface": True}
    methods, properties = record.get("methods", {}), record.get("properties", {})
    for method, texts in methods.items():
        if method in ("__init__", "__enter__", "__exit__", "__del__"):
            continue
        body[method] = function(
            module, method, [Signature(t) for t in texts if not t.startswith("python:")], behaviour, name
        )
    for key, access in properties.items():
        body[key] = attribute(key, access, behaviour, name)
    for key, inner in record.get("nested", {}).items():
        if isinstance(inner, dict):
            body[key] = build_class(module, key, inner["class"], behaviour)
    constructors = [Signature(t) for t in methods.get("__init__", []) if not t.startswith("python:")]

    def __init__(self, *args, **kwargs):
        if not constructors:
            raise TypeError(f"tensorrt.{name}: No constructor defined!")
        bound = next((b for b in (s.bind(module, args, kwargs) for s in constructors) if b is not None), None)
        if bound is None:
            raise TypeError(f"tensorrt.{name}: expected {[s.text for s in constructors]}, found {args} {kwargs}")
        behaviour.created(name, self, bound)

    def __setattr__(self, key, value):
        own = getattr(type(self), "_surface_class", None) is not type(self)  # a Python subclass has its own dict
        if key not in properties and not key.startswith("_") and not own:
            raise AttributeError(f"tensorrt.{name} has no attribute {key!r}")
        object.__setattr__(self, key, value)

    body["__init__"], body["__setattr__"] = __init__, __setattr__
    bases = (bytes,) if name == "IHostMemory" else (object,)
    bases = tuple(getattr(module, b) for b in record["bases"] if isinstance(getattr(module, b, None), type)) or bases
    made = type(name, bases, body)
    made._surface_class = made
    return made


def function(module, name, signatures, behaviour, owner=None):
    def call(*args, **kwargs):
        this, rest = (args[0], args[1:]) if owner else (None, args)
        if not signatures:
            raise Rejected(f"{owner}.{name}: no recorded signature")
        for signature in signatures:
            bound = signature.bind(module, rest, kwargs)
            if bound is not None:
                return behaviour.called(owner, name, this, bound, signature.result)
        raise TypeError(f"tensorrt.{owner}.{name}: expected {[s.text for s in signatures]}, found {rest} {kwargs}")

    call.__name__ = name
    return call


def attribute(key, access, behaviour, owner):
    def get(self):
        return behaviour.get(owner, key, self)

    def put(self, value):
        behaviour.put(owner, key, self, value)

    return property(get, put if access == "rw" else None)
