"""Checks the TensorRT calls of a source file against the recorded API of a release, along the paths that run there.

A small abstract interpreter: tests made of hasattr(trt..., "name") are evaluated with the release's API, branches that
cannot run are skipped (also what follows a branch that returns), everything else is walked. Variables have types by
their names.
"""

from __future__ import annotations

import ast

from fake_tensorrt import Signature, surface

VARIABLES = {
    "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition", "parser": "OnnxParser",
    "layer": "ILayer", "tensor": "ITensor", "engine": "ICudaEngine", "inspector": "EngineInspector",
    "profile": "IOptimizationProfile", "registry": "IPluginRegistry", "runtime": "Runtime", "cache": "ITimingCache",
    "others": "ITimingCache", "execution": "IExecutionContext", "_execution": "IExecutionContext",
    "_engine": "ICudaEngine",
}  # fmt: skip
_ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


class Checker:
    """``problems``: what a release lacks; ``seen``: names and members that were looked up."""

    def __init__(self, version, imported=()):
        self.version, self.api = version, surface(version)
        self.variables = {k: v for k, v in VARIABLES.items() if k not in imported}
        self.problems, self.seen = [], set()

    # ---- the API
    def record(self, name):
        return self.api["classes"].get(name)

    def member(self, cls, name):
        """("method", signatures), ("property", access), ("value", None), or None."""
        record = self.record(cls)
        if record is None:
            return None
        if name in record.get("enum", {}):
            return "value", None
        if name in record.get("methods", {}):
            return "method", [Signature(t) for t in record["methods"][name] if not t.startswith("python:")]
        if name in record.get("properties", {}):
            return "property", record["properties"][name]
        if name in record.get("nested", {}):
            return "value", record["nested"][name]
        for base in record["bases"]:
            found = self.member(base, name)
            if found:
                return found
        return None

    def resolve(self, node):
        """Class name behind an expression: trt.X -> "X", a typed variable -> its class; "" for the module itself."""
        if isinstance(node, ast.Name):
            return "" if node.id == "trt" else self.variables.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "trt":
                return node.attr
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return "" if node.attr == "trt" else self.variables.get(node.attr)
        return None

    # ---- walking
    def file(self, tree):
        self.block(tree.body)
        return self.problems

    def block(self, statements):
        return any(self.statement(statement) for statement in statements)

    def statement(self, node):
        """True when nothing behind it runs."""
        if isinstance(node, ast.If):
            value = self.test(node.test)
            parts = ((node.body, value is not False), (node.orelse, value is not True))
            ended = [self.block(part) for part, runs in parts if runs]
            return all(ended) and (value is not None or bool(node.orelse))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(node, ast.ClassDef):
                self.subclass(node)
            for child in node.decorator_list:
                self.expression(child)
            self.block(node.body)
            return False
        for field in ("body", "orelse", "finalbody"):
            for child in getattr(node, field, []) if not isinstance(node, ast.Expr) else []:
                self.statement(child)
        for handler in getattr(node, "handlers", []):
            self.block(handler.body)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.expr, ast.withitem)):
                self.expression(child)
        return isinstance(node, _ENDS)

    def test(self, node):
        """True, False or None (unknown) of a condition; its expressions are walked as far as they run."""
        if isinstance(node, ast.BoolOp):
            stops = isinstance(node.op, ast.Or)
            result = not stops
            for value in node.values:
                one = self.test(value)
                if one is stops:
                    return stops
                result = None if one is None else result
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            value = self.test(node.operand)
            return None if value is None else not value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            owner, name = self.resolve(node.args[0]), node.args[1].value
            if owner is not None:
                self.expression(node.args[0])
                if owner == "":
                    return name in self.api["classes"] or name in self.api["functions"]
                return self.member(owner, name) is not None
        self.expression(node)
        return None

    def expression(self, node):
        if isinstance(node, (ast.BoolOp,)):
            self.test(node)
            return
        if isinstance(node, ast.IfExp):
            value = self.test(node.test)
            if value is not False:
                self.expression(node.body)
            if value is not True:
                self.expression(node.orelse)
            return
        if isinstance(node, ast.Call):
            self.call(node)
        elif isinstance(node, ast.Attribute):
            self.attribute(node)
        for child in ast.iter_child_nodes(node):
            self.expression(child)

    def attribute(self, node):
        owner = self.resolve(node.value)
        if owner is None or (isinstance(node.value, ast.Name) and node.value.id == "self"):
            return
        where = f"line {node.lineno}: {owner or 'trt'}.{node.attr}"
        self.seen.add((owner, node.attr))
        if owner == "":
            if (
                node.attr not in self.api["classes"]
                and node.attr not in self.api["functions"]
                and node.attr[:2] != "__"
            ):
                self.problems.append(where + " is not there")
            return
        found = self.member(owner, node.attr)
        if found is None:
            self.problems.append(where + " is not there")
        elif isinstance(node.ctx, ast.Store) and found != ("property", "rw"):
            self.problems.append(where + " cannot be set")

    def call(self, node):
        owner = self.resolve(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if owner is None:
            return
        name = node.func.attr
        if owner == "":
            record = self.record(name)
            if record is None:
                signatures = [Signature(t, False) for t in self.api["functions"].get(name, [])]
            else:
                signatures = [Signature(t) for t in record.get("methods", {}).get("__init__", [])]
        else:
            found = self.member(owner, name)
            signatures = found[1] if found and found[0] == "method" else []
        given = [keyword.arg for keyword in node.keywords]
        starred = any(isinstance(a, ast.Starred) for a in node.args) or None in given
        inner = node.func.value  # trt.X.method(self, ...) is called unbound
        unbound = (
            owner and isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "trt"
        )
        count = len(node.args) - bool(unbound)
        if not starred and not any(self.takes(s, count, given) for s in signatures):
            self.problems.append(f"line {node.lineno}: {owner or 'trt'}.{name} does not take these arguments")

    @staticmethod
    def takes(signature, positional, keywords):
        names = [a[0] for a in signature.arguments]
        if positional > len(names) or any(k not in names[positional:] for k in keywords):
            return False
        return all(
            optional or i < positional or name in keywords for i, (name, _, optional) in enumerate(signature.arguments)
        )

    def subclass(self, node):
        """Methods that override: they must be there, with as many arguments."""
        for base in node.bases:
            owner = self.resolve(base)
            if not owner:
                continue
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("__")]
            known = [m for m in methods if self.member(owner, m.name)]
            for method in methods:
                if method not in known:
                    self.problems.append(f"line {method.lineno}: {owner} has no {method.name} to override")
            for method in known:
                signatures = self.member(owner, method.name)[1]
                count = len(method.args.args) - 1
                if signatures and all(len(s.arguments) != count for s in signatures):
                    self.problems.append(f"line {method.lineno}: {owner}.{method.name} takes other arguments")


def problems(source, version):
    """What ``source`` uses and ``version`` lacks."""
    return check(source, version).problems


def check(source, version):
    """The finished checker of a source file."""
    tree = ast.parse(source)
    imported = {alias.asname or alias.name.split(".")[0] for node in tree.body
                if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}  # fmt: skip
    checker = Checker(version, imported)
    checker.file(tree)
    return checker
