"""The CUDA library: contexts, kernel images, errors, and that Python's view of the C header is the header's."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import emulation
import pytest

import crispseg.plugins
from crispseg.engines import cuda
from crispseg.errors import CrispsegError, EnvironmentMismatch, InputError
from crispseg.plugins import cuda_loader

HEADER = (emulation.CUDA / "include" / "crispseg_cuda.h").read_text()
TABLE = (emulation.CUDA / "kernels" / "table.h").read_text()
KERNELS = {
    name: (int(threads), int(capability))
    for name, threads, capability in re.findall(r"^CS_KERNEL\((\w+), (\d+), (\d+),\s+\(", TABLE, re.M)
}


def runs(lowest: int, capability: int) -> bool:
    """Whether a kernel is for a device: those of 9.0 are for no other."""
    return capability == 90 if lowest == 90 else capability >= lowest


@pytest.fixture
def library(emulated):
    cuda.open_device()
    return cuda_loader.load()


def test_every_function_of_the_header_is_in_the_library(library):
    declared = set(re.findall(r"CSG_API [\w ]+?\*?(csg_\w+)\(", HEADER))
    assert declared == set(cuda_loader.PROTOTYPES)
    raw = ctypes.CDLL(os.environ["CRISPSEG_CUDA_LIBRARY"])
    missing = [name for name in sorted(declared) if not hasattr(raw, name)]
    assert missing == []


def test_a_context_and_its_report(library, kernel_image):
    handle = cuda_loader.create(kernel_image)
    rows = json.loads(library.csg_kernel_report(handle))
    capability = library.csg_compute_capability(handle)
    wanted = {name: threads for name, (threads, lowest) in KERNELS.items() if runs(lowest, capability)}
    assert {row["name"]: row["threads"] for row in rows} == wanted
    assert set(rows[0]) == {"name", "registers", "shared_bytes", "local_bytes", "threads"}
    # Another thread, which has no current CUDA context, may give it back.
    thread = threading.Thread(target=library.csg_destroy, args=(handle,))
    thread.start()
    thread.join()
    library.csg_destroy(None)


def test_a_kernel_without_its_table_line_does_not_hide():
    defined = set()
    for path in (emulation.CUDA / "kernels").glob("*.cuh"):
        defined |= set(re.findall(r"^CS_GLOBAL void .*?\b(csk_\w+)\(", path.read_text(), re.M))
    assert "csk_fill_u32" in defined
    assert defined <= set(KERNELS)


def test_without_a_driver_one_clear_line(library, kernel_image, monkeypatch):
    monkeypatch.setenv("CRISPSEG_LIBCUDA", "/nowhere/libcuda.so.1")
    with pytest.raises(EnvironmentMismatch) as error:
        cuda_loader.create(kernel_image)
    text = str(error.value)
    assert "expected /nowhere/libcuda.so.1, found none" in text
    assert "--backend native" in text
    assert "\n" not in text
    monkeypatch.setenv("CRISPSEG_LIBCUDA", "libm.so.6")
    with pytest.raises(EnvironmentMismatch, match="expected cuInit in libm.so.6"):
        cuda_loader.create(kernel_image)


def test_no_device_and_old_devices(library, kernel_image):
    code = """
import sys, ctypes
from crispseg.plugins import cuda_loader
from crispseg.engines import cuda
from crispseg.errors import CrispsegError
try:
    if sys.argv[1] != "library":
        cuda.open_device()
    handle = cuda_loader.create(sys.stdin.buffer.read())
    print("kernels", cuda_loader.load().csg_kernel_report(handle).decode())
except CrispsegError as error:
    print(error)
"""

    def run(how, image=kernel_image, **environment):
        command = [sys.executable, "-c", code, how]
        done = subprocess.run(
            command, input=image, stdout=subprocess.PIPE, env={**os.environ, **environment}, timeout=60
        )
        assert done.returncode == 0
        return done.stdout.decode()

    assert "CUDA_ERROR_NO_DEVICE" in run("library", CRISPSEG_EMULATION_DEVICES="0")
    assert "6.1, expected 7.2 or higher" in run("device", CRISPSEG_EMULATION_CAPABILITY="61")
    text = run("device", emulation.image(capability=72), CRISPSEG_EMULATION_CAPABILITY="72")
    names = {row["name"] for row in json.loads(text.split(" ", 1)[1])}
    assert names == {name for name, (_, lowest) in KERNELS.items() if lowest <= 72}


def test_a_thread_without_a_context(library, kernel_image):
    caught = []

    def elsewhere():
        try:
            cuda_loader.create(kernel_image)
        except CrispsegError as error:
            caught.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert "expected a current CUDA context on this thread" in caught[0]


ELF = b"\x7fELF" + b"\x02" * 36 + (1 << 40).to_bytes(8, "little") + b"\0" * 64  # sections far behind the end
FATBIN = b"\x50\xed\x55\xba\x01\x00\x10\x00" + (1 << 40).to_bytes(8, "little") + b"\0" * 64


@pytest.mark.parametrize("image", [b"", b"x", b"x" * 200, ELF, FATBIN], ids=["empty", "short", "text", "elf", "fatbin"])
def test_broken_images_are_refused_unread(library, image):
    with pytest.raises(EnvironmentMismatch, match="expected a whole cubin, fatbin or PTX text"):
        cuda_loader.create(image)


def test_images_that_do_not_fit(library):
    with pytest.raises(EnvironmentMismatch, match=r"does not load on Emulated GPU.*CUDA_ERROR_INVALID_IMAGE"):
        cuda_loader.create(b".version 7.0" + b"\0" * 64)
    other = emulation.image(emulation.HERE / "faults.cu", emulation.HERE / "faults_table.h")
    with pytest.raises(EnvironmentMismatch, match="expected kernel csk_fill_u32, found none"):
        cuda_loader.create(other)
    assert cuda_loader.embedded_image() is None, "the tests' library is built without nvcc"
    with pytest.raises(EnvironmentMismatch, match="built without nvcc"):
        cuda_loader.create()


def test_statuses_become_errors(library):
    cuda_loader.check(0)
    with pytest.raises(InputError):
        cuda_loader.check(cuda_loader.BAD_ARGUMENT)
    for status in (cuda_loader.NO_DRIVER, cuda_loader.UNSUPPORTED, cuda_loader.DRIVER_ERROR):
        with pytest.raises(EnvironmentMismatch):
            cuda_loader.check(status)
    with pytest.raises(CrispsegError, match="status -5"):
        cuda_loader.check(cuda_loader.INTERNAL)


def test_library_that_is_not_there_or_not_ours(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_loader, "_library", None)
    monkeypatch.setenv("CRISPSEG_CUDA_LIBRARY", str(tmp_path / "no.so"))
    with pytest.raises(EnvironmentMismatch, match=r"not found \(looked at .*no\.so\)"):
        cuda_loader.load()
    (tmp_path / "no.so").write_bytes(b"not a library")
    with pytest.raises(EnvironmentMismatch, match="does not load"):
        cuda_loader.load()


def test_an_installation_has_library_and_kernels():
    native = [Path(folder) for folder in crispseg.plugins.__path__ if (Path(folder) / "libcrispseg.so").is_file()]
    if not native or not sys.platform.startswith("linux"):
        pytest.skip("crispseg is not installed with its libraries")
    assert (native[0] / "libcrispseg_cuda.so").is_file(), f"{native[0]} has libcrispseg.so alone: install again"
    assert (cuda_loader.kernel_folder() / "base.cuh").is_file()


C_TYPES = {
    "csg_type": ctypes.c_int,
    "csg_upsample": ctypes.c_int,
    "csg_extent": ctypes.c_int,
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "size_t": ctypes.c_size_t,
    "void": None,
}


def test_prototypes_are_those_of_the_header():
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.S)
    structures = {"csg_features": "Features", "csg_conv": "Conv", "csg_fit": "Fit"}
    for result, name, arguments in re.findall(r"CSG_API ([\w ]+?\*?)\s*(csg_\w+)\(([^)]*)\);", text):
        wanted = []
        for argument in arguments.split(","):
            argument = argument.replace("const ", "").strip()
            if argument == "void":
                continue
            kind = argument.split()[0]
            if kind in structures:
                wanted.append(ctypes.POINTER(getattr(cuda_loader, structures[kind])))
            elif name == "csg_embedded_image":
                wanted.append(ctypes.POINTER(ctypes.c_size_t))
            else:
                wanted.append(ctypes.c_void_p if "*" in argument or kind == "csg_stream" else C_TYPES[kind])
        declared = cuda_loader.PROTOTYPES[name]
        assert [t.__name__ for t in declared[1]] == [t.__name__ for t in wanted], name
        result = result.replace("const ", "")
        pointer = ctypes.c_char_p if result.startswith("char") else ctypes.c_void_p
        assert declared[0] is (pointer if "*" in result else C_TYPES[result.strip()]), name


def test_structures_have_the_layout_of_the_header(emulated_driver, tmp_path):
    lines = []
    for name, structure in (("csg_features", "Features"), ("csg_conv", "Conv"), ("csg_fit", "Fit")):
        for field, _ in getattr(cuda_loader, structure)._fields_:
            lines.append(
                f'printf("{name} {field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
            )
        lines.append(f'printf("{name} - %zu 0\\n", sizeof({name}));')
    source = tmp_path / "layout.cpp"
    source.write_text(f'#include <cstdio>\n#include "crispseg_cuda.h"\nint main() {{ {" ".join(lines)} }}\n')
    program = tmp_path / "layout"
    include = f"-I{emulation.CUDA / 'include'}"
    subprocess.run([*emulation.compiler(), "-w", include, str(source), "-o", str(program)], check=True)
    for line in subprocess.check_output([str(program)]).decode().splitlines():
        name, field, offset, size = line.split()
        structure = getattr(cuda_loader, {"csg_features": "Features", "csg_conv": "Conv", "csg_fit": "Fit"}[name])
        if field == "-":
            assert ctypes.sizeof(structure) == int(offset), name
        else:
            described = getattr(structure, field)
            assert (described.offset, described.size) == (int(offset), int(size)), f"{name}.{field}"
