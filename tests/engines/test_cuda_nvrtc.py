"""Finding NVRTC, compiling the kernels, and `crispseg build --backend cuda`: with a stand-in library, and the real one.

The real NVRTC is a wheel of 24 MB (nvidia-cuda-nvrtc-cu12); those tests skip without it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import pytest

from crispseg.bundle import load_bundle
from crispseg.cli import main
from crispseg.engines import cache, cuda, cuda_kernels, nvrtc
from crispseg.errors import EnvironmentMismatch
from crispseg.plugins import cuda_loader

STAND_IN = r"""
#include <string.h>
#include <stdlib.h>
static char text[256]; static int failed;
int nvrtcVersion(int *a, int *b) { *a = MAJOR; *b = 4; return 0; }
int nvrtcGetNumSupportedArchs(int *n) { *n = 3; return 0; }
int nvrtcGetSupportedArchs(int *a) { a[0] = 75; a[1] = 80; a[2] = 90; return 0; }
int nvrtcCreateProgram(void **p, const char *s, const char *name, int n, const char **h, const char **names) {
  failed = strstr(s, "broken") != 0; *p = text; return n < 1; }
int nvrtcCompileProgram(void *p, int n, const char **options) { strcpy(text, options[0]); return failed ? 6 : 0; }
int nvrtcGetProgramLogSize(void *p, size_t *n) { *n = 60; return 0; }
int nvrtcGetProgramLog(void *p, char *out) {
  strcpy(out, "note: so it goes\nkernels.cu(3): error: no such thing\n"); return 0; }
int nvrtcGetCUBINSize(void *p, size_t *n) { *n = strlen(text); return 0; }
int nvrtcGetCUBIN(void *p, char *out) { memcpy(out, text, strlen(text)); return 0; }
int nvrtcGetPTXSize(void *p, size_t *n) { *n = strlen(text) + 5; return 0; }
int nvrtcGetPTX(void *p, char *out) { strcpy(out, "ptx "); strcat(out, text); return 0; }
int nvrtcDestroyProgram(void **p) { *p = 0; return 0; }
const char *nvrtcGetErrorString(int s) { return "NVRTC_ERROR_COMPILATION"; }
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("the stand-in for NVRTC needs a C compiler")
    folder = tmp_path_factory.mktemp("nvrtc")
    (folder / "n.c").write_text(STAND_IN)

    def build(major):
        path = folder / ("libnvrtc.so.%d" % major)
        command = [compiler, "-w", "-shared", "-fPIC", "-DMAJOR=%d" % major, "-o", str(path), str(folder / "n.c")]
        subprocess.run(command, check=True)
        return path

    return {major: build(major) for major in (11, 13)}


@pytest.fixture
def found(stand_in, monkeypatch):
    monkeypatch.setattr(nvrtc, "candidates", lambda: list(stand_in.values()))


SOURCES = {"kernels.cu": '#include "a.cuh"', "a.cuh": "fine"}


def test_the_newest_that_the_driver_takes(found):
    assert nvrtc.find_compiler(90).version == (13, 4)
    assert nvrtc.find_compiler(90, "12.2").version == (11, 4)


def test_the_nearest_architecture_of_the_same_family(found):
    compiler = nvrtc.find_compiler(86)
    assert compiler.target(86) == 80
    assert nvrtc.compile_kernels(compiler, 86, SOURCES) == b"--gpu-architecture=sm_80"
    assert nvrtc.compile_kernels(compiler, 90, SOURCES) == b"--gpu-architecture=sm_90a"  # with what only 9.0 has
    before = nvrtc.find_compiler(90, "12.2")  # 11: it knows no sm_90a
    assert nvrtc.compile_kernels(before, 90, SOURCES) == b"--gpu-architecture=sm_90"


def test_machine_code_of_a_jetson_is_for_it_alone(found):
    compiler = nvrtc.find_compiler(87)  # Orin
    assert nvrtc.compile_kernels(compiler, 87, SOURCES) == b"ptx --gpu-architecture=compute_80\0"
    compiler = replace(compiler, architectures=(80, 86, 87, 90, 100, 101))
    assert [compiler.code(item) for item in (86, 87, 89, 101, 103, 110)] == [
        "sm_86", "sm_87", "sm_86", "sm_101", "sm_100", "compute_101"]  # fmt: skip


@pytest.mark.parametrize("architecture", [100, 103, 110, 120, 121])
def test_ptx_for_what_the_compiler_does_not_know_yet(found, architecture):
    compiler = nvrtc.find_compiler(architecture, "13.4")
    assert (compiler.version, compiler.target(architecture)) == ((13, 4), 0)
    assert nvrtc.compile_kernels(compiler, architecture, SOURCES) == b"ptx --gpu-architecture=compute_90\0"
    assert nvrtc.find_compiler(architecture, "13.1").version == (11, 4)  # no driver takes the PTX of a newer release
    first = "13.0" if architecture == 110 else "12.8"
    text = r'sm_%d \(CUDA %s or newer\) and CUDA up to 11, .*; pip install -U "nvidia-cuda-nvrtc\S*>=%s", or install'
    with pytest.raises(EnvironmentMismatch, match=text % (architecture, first, first)):
        nvrtc.find_compiler(architecture, "11.2")


def test_machine_code_comes_before_ptx(monkeypatch):
    known = {"a": ((12, 8), (75, 90, 100, 120)), "b": ((13, 0), (75, 90)), "c": ((12, 9), (90, 100, 103, 120, 121))}
    monkeypatch.setattr(nvrtc, "candidates", lambda: list(known))
    monkeypatch.setattr(nvrtc, "_open", lambda name: nvrtc.Compiler(name, None, *known[name]))
    for architecture, driver, path, code in [
        (100, "13.0", "c", "sm_100"), (120, "12.8", "c", "sm_120"), (121, "", "c", "sm_121"),
        (110, "13.0", "b", "compute_90"), (110, "12.9", "c", "compute_103"), (90, "", "b", "sm_90a"),
        (89, "12.0", "a", "compute_75"),
    ]:  # fmt: skip
        if code == "compute_75":  # below 8.0: its PTX lacks the kernels of newer GPUs
            with pytest.raises(EnvironmentMismatch, match="without sm_89"):
                nvrtc.find_compiler(architecture, driver)
            continue
        compiler = nvrtc.find_compiler(architecture, driver)
        assert (compiler.path, compiler.code(architecture)) == (path, code)
    monkeypatch.setattr(nvrtc, "candidates", lambda: ["a", "b"])
    assert nvrtc.find_compiler(103).code(103) == "sm_100"  # runs on 10.3 too
    assert nvrtc.find_compiler(121, "13.0").code(121) == "sm_120"


def test_what_was_found_and_why_it_does_not_fit(found):
    with pytest.raises(EnvironmentMismatch, match=r"sm_72.*without sm_72.*pip install crispseg\[cuda\]"):
        nvrtc.find_compiler(72)
    with pytest.raises(EnvironmentMismatch, match=r"11.4, newer than the driver's 10.2"):
        nvrtc.find_compiler(90, "10.2")


def test_none_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(nvrtc, "candidates", list)
    with pytest.raises(EnvironmentMismatch, match=r"found none; pip install crispseg\[cuda\]"):
        nvrtc.find_compiler(90)
    (tmp_path / "libnvrtc.so").write_text("no library")
    monkeypatch.setattr(nvrtc, "candidates", lambda: [tmp_path / "libnvrtc.so"])
    with pytest.raises(EnvironmentMismatch, match="libnvrtc.so does not load"):
        nvrtc.find_compiler(90)


def test_the_log_of_a_failure_is_told(found):
    with pytest.raises(EnvironmentMismatch, match=r"sm_90: NVRTC 13.4 .*: kernels.cu\(3\): error: no such thing$"):
        nvrtc.compile_kernels(nvrtc.find_compiler(90), 90, {**SOURCES, "kernels.cu": "broken"})


def test_wheels_and_toolkits_are_searched(monkeypatch, tmp_path):
    monkeypatch.delenv(nvrtc.ENVIRONMENT, raising=False)
    places = [tmp_path / "site" / "nvidia" / "cuda_nvrtc" / "lib", tmp_path / "cuda" / "lib64"]
    for place in places:
        place.mkdir(parents=True)
        (place / "libnvrtc.so.12").write_text("x")
        (place / "libnvrtc.so").symlink_to("libnvrtc.so.12")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    found = [path for path in nvrtc.candidates() if tmp_path in path.parents]  # this Python may have the wheel itself
    assert found == [place / "libnvrtc.so.12" for place in places]
    monkeypatch.setenv(nvrtc.ENVIRONMENT, "/mine/libnvrtc.so")
    assert [str(path) for path in nvrtc.candidates()] == ["/mine/libnvrtc.so"]


def test_the_hash_follows_every_source(tmp_path):
    sources = nvrtc.kernel_sources()
    assert nvrtc.MAIN in sources
    first = nvrtc.sources_hash(sources)
    assert nvrtc.sources_hash({**sources, "base.cuh": sources["base.cuh"] + "\n"}) != first
    with pytest.raises(EnvironmentMismatch, match="install crispseg again"):
        nvrtc.kernel_sources(tmp_path)


@pytest.fixture
def bundle(tmp_path):
    import sys
    from pathlib import Path

    sys.path.append(str(Path(__file__).parents[1] / "runtime"))
    import gpu_toy

    return gpu_toy.write(tmp_path / "b")


def test_build_stores_the_kernels_once(bundle, emulated, kernel_image, found, monkeypatch, capsys):
    monkeypatch.setattr(nvrtc, "compile_kernels", lambda compiler, architecture, sources: kernel_image)
    assert main(["build", str(bundle.path), "--backend", "cuda", "--json"]) == 0
    row, base = json.loads(capsys.readouterr().out)["engines"]
    assert (base["part"], base["precision"]) == ("base", "fp16")
    info = cuda.open_device(0).info
    compiler = nvrtc.find_compiler(info.capability, info.driver)
    made = ("kernels", "NVRTC %d.%d" % compiler.version, compiler.code(info.capability))
    assert (row["part"], row["image"], row["architecture"]) == made
    monkeypatch.setattr(nvrtc, "compile_kernels", lambda *_: pytest.fail("compiled again"))
    assert main(["build", str(bundle.path), "--backend", "cuda", "--precision", "fp32", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["engines"]) == 1
    kernels = cuda_kernels.open_kernels(cuda.open_device(0), load_bundle(bundle.path))
    assert kernels.describe()["image"] == "engine cache"
    kernels.close()


def test_a_gpu_that_is_too_old(bundle, emulated, found, monkeypatch, capsys):
    """NVRTC would compile for it, up to an error of some kernel: the capability is what is told."""
    monkeypatch.setattr(nvrtc, "find_compiler", lambda *_: pytest.fail("compiled for it"))
    context = cuda.open_device(0)
    monkeypatch.setattr(context, "info", replace(context.info, capability=61))
    text = "Emulated GPU: expected compute capability 7.2 or higher, found 6.1; use --backend native"
    assert main(["build", str(bundle.path), "--backend", "cuda"]) == 2
    assert " ".join(capsys.readouterr().err.split()).endswith(text)
    for ask in (lambda: cuda_kernels.open_kernels(context, bundle), lambda: cuda_kernels.outlook(context)):
        with pytest.raises(EnvironmentMismatch) as caught:
            ask()
        assert str(caught.value) == text


def test_outlook(emulated, kernel_image, found, monkeypatch):
    context = cuda.open_device(0)

    def of(capability, driver):
        monkeypatch.setattr(context, "info", replace(context.info, capability=capability, driver=driver))
        return cuda_kernels.outlook(context)

    assert of(86, "13.4") == "crispseg build --backend cuda compiles them for sm_80 with NVRTC 13.4"
    text = "compiles them for compute_90 with NVRTC 13.4, which does not know sm_120 yet: the driver compiles that"
    assert text in of(120, "13.4")
    with pytest.raises(EnvironmentMismatch, match="nvidia-cuda-nvrtc-cu12>=12.8"):
        of(100, "10.0")
    create = cuda_loader.create
    monkeypatch.setattr(cuda_loader, "embedded_image", lambda: kernel_image)
    monkeypatch.setattr(cuda_loader, "create", lambda image=None: create(image or kernel_image))
    assert of(context.info.capability, "10.0").startswith("linked in, convolutions in fp16 on mma")


def test_ptx_makes_room_for_machine_code(bundle, emulated, kernel_image, monkeypatch):
    """The first NVRTC does not know the device, the second does; without one what is there stays."""
    known, context = {"old": ((11, 4), (75, 80)), "new": ((11, 5), (75, 80, 87))}, cuda.open_device(0)
    monkeypatch.setattr(context, "info", replace(context.info, capability=87))
    monkeypatch.setattr(context, "info", replace(context.info, driver="11.5"))
    monkeypatch.setattr(nvrtc, "_open", lambda name: nvrtc.Compiler(name, None, *known[name]))
    monkeypatch.setattr(nvrtc, "compile_kernels", lambda compiler, architecture, sources: kernel_image)
    found = []
    for names in (["old"], [], ["old"], ["old", "new"], ["old"]):
        monkeypatch.setattr(nvrtc, "candidates", lambda names=names: names)
        found.append(cuda_kernels.build(bundle, context).facts["architecture"])
    assert found == ["compute_80"] * 3 + ["sm_87"] * 2


def test_an_image_that_the_driver_refuses_is_not_stored(bundle, emulated, found, capsys):
    assert main(["build", str(bundle.path), "--backend", "cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(bundle.path.glob("engines/*"))


def test_kernels_inside_the_library_come_first(bundle, emulated, kernel_image, found, monkeypatch):
    create, context = cuda_loader.create, cuda.open_device(0)
    monkeypatch.setattr(cuda_loader, "embedded_image", lambda: kernel_image)
    monkeypatch.setattr(cuda_loader, "create", lambda image=None: create(image or kernel_image))
    kernels = cuda_kernels.open_kernels(context, bundle)
    assert kernels.describe()["image"] == "linked into the library"
    kernels.close()
    assert cuda_kernels.build(bundle, context).facts == {"image": "linked into the library"}


def test_kernels_inside_the_library_for_other_gpus_do_not_count(bundle, emulated, kernel_image, monkeypatch):
    create, context = cuda_loader.create, cuda.open_device(0)

    def refuse(image=None):
        if image is None:
            raise EnvironmentMismatch("no kernel image for this device")
        return create(image)

    monkeypatch.setattr(cuda_loader, "embedded_image", lambda: b"for others")
    monkeypatch.setattr(cuda_loader, "create", refuse)
    with pytest.raises(EnvironmentMismatch, match=r"crispseg build .* --backend cuda"):
        cuda_kernels.open_kernels(context, bundle)
    cache.store(bundle.path, cuda_kernels.identity(context), {cuda_kernels.IMAGE: kernel_image})
    kernels = cuda_kernels.open_kernels(context, bundle)
    assert kernels.describe()["image"] == "engine cache"
    kernels.close()


def test_a_damaged_image_is_built_again(bundle, emulated, kernel_image, found, monkeypatch):
    monkeypatch.setattr(nvrtc, "compile_kernels", lambda compiler, architecture, sources: kernel_image)
    context = cuda.open_device(0)
    path = cuda_kernels.build(bundle, context).path / cuda_kernels.IMAGE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(cache.BundleError, match="altered"):
        cuda_kernels.open_kernels(context, bundle)
    cuda_kernels.build(bundle, context)
    cuda_kernels.open_kernels(context, bundle).close()


@pytest.mark.slow
def test_the_real_compiler_takes_our_kernels():
    try:
        compiler = nvrtc.find_compiler(87)
    except EnvironmentMismatch as error:
        pytest.skip(str(error))
    image = nvrtc.compile_kernels(compiler, 87, nvrtc.kernel_sources())
    assert image[:4] == b"\x7fELF"
