"""The TensorRT plugins' core, without TensorRT: attributes, shapes, types, state, workspace, the calls of the C ABI.

The cases are C++ (tests/plugins/tensorrt/core_test.cpp); the functions of the C ABI are replaced by ones that write
down their arguments.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

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
            if attribute.name == "x_scale":  # the front end turns it into types, scales and the input `dequant`
                continue
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


# 8.x spells its version out; since 10.11 the macros are made of others.
VERSION_H = {
    "8.5.2": "#define NV_TENSORRT_MAJOR 8 //!< major\n#define NV_TENSORRT_MINOR 5\n#define NV_TENSORRT_PATCH 2\n",
    "8.4.3": "#define NV_TENSORRT_MAJOR 8\n#define NV_TENSORRT_MINOR 4\n#define NV_TENSORRT_PATCH 3\n",
    "9.3.0": "#define NV_TENSORRT_MAJOR 9\n#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0\n",
    "11.1.0": "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n#define TRT_PATCH_ENTERPRISE 0\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n"
    "#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE\n",
    "": "// nothing here\n",
}


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("8.5.2", "crispseg: plugin library for TensorRT 8.5.2 ("),
        ("11.1.0", "crispseg: plugin library for TensorRT 11.1.0 ("),
        ("8.4.3", "crispseg: TensorRT 8.4.3: 8.5, 8.6 or 10 and newer is needed, plugin library left out"),
        ("9.3.0", "crispseg: TensorRT 9.3.0: 8.5, 8.6 or 10 and newer is needed, plugin library left out"),
        ("", "crispseg: no version in"),
        (None, "crispseg: no TensorRT headers"),
    ],
)
def test_cmake_reads_the_version(tmp_path, version, message):
    """By the preprocessor; a version that does not serve, or none, leaves this target out and fails nothing."""
    command = ["cmake", "-S", str(tensorrt_build.PLUGIN), "-B", str(tmp_path / "build")]
    if version is None:
        if any(Path("/usr/include").glob("**/NvInferRuntime.h")):
            pytest.skip("TensorRT's headers are installed here")
    else:
        include = tmp_path / "TensorRT" / "include"
        include.mkdir(parents=True)
        (include / "NvInferRuntime.h").write_text("")
        (include / "NvInferVersion.h").write_text(VERSION_H[version])
        command.append("-DTensorRT_ROOT=%s" % include.parent)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()
    assert message in " ".join(done.stdout.decode().split())
