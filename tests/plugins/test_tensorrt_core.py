"""The TensorRT plugins' core, without TensorRT: attributes, shapes, types, state, workspace, the calls of the C ABI.

The cases are C++ (tests/plugins/tensorrt/core_test.cpp); the functions of the C ABI are replaced by ones that write
down their arguments.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import emulation
import pytest
import tensorrt_build

from crispseg.plugins.ops import BY_NAME

CASES = sorted(re.findall(r'{"(\w+)", test_\w+}', (tensorrt_build.CASES / "core_test.cpp").read_text()))


@pytest.fixture(scope="module")
def program():
    if not shutil.which(emulation.compiler()[0]):
        pytest.skip("needs g++")
    return tensorrt_build.core_program()


def test_every_case_is_listed(program):
    listed = subprocess.run([program, "--list"], stdout=subprocess.PIPE, check=True).stdout.decode().split()
    assert sorted(listed) == CASES
    assert len(CASES) >= 12


@pytest.mark.parametrize("case", CASES)
def test_core(program, case):
    done = subprocess.run([program, case], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()


def test_attributes_are_those_of_the_contract():
    """Every attribute of a contract op is known to the plugin, by the same name and with the same choices."""
    table = (tensorrt_build.PLUGIN / "core" / "attributes.h").read_text()
    table += (tensorrt_build.PLUGIN / "core" / "params.cpp").read_text()
    for op in BY_NAME.values():
        for attribute in op.attributes:
            assert '"%s"' % attribute.name in table, (op.name, attribute.name)
            for choice in attribute.choices:
                assert isinstance(choice, int) or '"%s"' % choice in table, (op.name, choice)


def test_inputs_are_those_of_the_contract():
    """The roles stand in the contract's order; only SparseConv2d and EnsembleLogits add or replace some at the end."""
    text = (tensorrt_build.PLUGIN / "core" / "tensors.cpp").read_text()
    added = {"SparseConv2d": ["dequant", "order"], "DownMap": ["order"], "EnsembleLogits": ["gate"]}
    for op in BY_NAME.values():
        block = text[text.index("of(Op::k%s)" % op.name) :]
        found = re.findall(r'"(\w+)"|\b(coords|count|logits)\b', block[: block.index(";")])
        names = [a or b for a, b in found]
        expected = [t.name for t in op.inputs if not re.fullmatch(r"[wb][1-4]", t.name)]
        outputs = [t.name for t in op.outputs]
        extra = added.get(op.name, [])
        tail = [extra] if op.name == "DownMap" else []
        want = expected + ([] if tail else extra) + outputs + (extra if tail else [])
        assert names == want, op.name
