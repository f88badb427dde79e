"""The CUDA kernels on a device: where their image comes from, and calls of the host library that raise errors.

The image is linked into the library when nvcc was there at its build; otherwise `crispseg build BUNDLE --backend cuda`
compiles the same sources with NVRTC into the bundle's engine cache. Running never compiles.
"""

from __future__ import annotations

import json
import weakref
from typing import Any, Callable, Dict, Optional

from crispseg.bundle import Bundle
from crispseg.engines import cache, nvrtc
from crispseg.engines.cuda import Context
from crispseg.engines.cuda_driver import LOST_ADVICE
from crispseg.errors import CrispsegError, EnvironmentMismatch
from crispseg.plugins import cuda_loader

IMAGE = "kernels.cubin"
LEAST = 72  # compute capability
TYPES = {"fp32": 0, "fp16": 1, "int8": 2}  # csg_type


class Kernels:
    """A context of the host library (csg_context) on a device. ``library`` holds the C functions.

    Args:
        context: the device, current on the calling thread.
        image: cubin, fatbin or PTX; None = the one that is linked into the library.

    Raises:
        EnvironmentMismatch: no library, or the driver does not take the image.
    """

    def __init__(self, context: Context, image: Optional[bytes] = None) -> None:
        self.context = context
        self.library = cuda_loader.load()
        self.source = "linked into the library" if image is None else "engine cache"
        context.activate()
        self.handle: Any = cuda_loader.create(image)
        self._finalizer = weakref.finalize(self, self.library.csg_destroy, self.handle)

    def call(self, name: str, *arguments: Any) -> None:
        """Call ``name(context, *arguments)``.

        Raises:
            InputError, EnvironmentMismatch, CrispsegError: see ``cuda_loader.check``.
        """
        status = getattr(self.library, name)(self.handle, *arguments)
        if status == cuda_loader.DRIVER_ERROR and not self.context.alive:  # of a kernel before this call
            raise EnvironmentMismatch("%s; %s" % (cuda_loader.last_error(), LOST_ADVICE))
        self.check(name, status)

    @staticmethod
    def check(name: str, status: int) -> None:
        """Raise what :meth:`call` does for a status."""
        if status:
            cuda_loader.check(status)

    def size(self, name: str, *arguments: Any) -> int:
        """A workspace or capacity: ``name(*arguments)``."""
        return int(getattr(self.library, name)(*arguments))

    @property
    def convolutions(self) -> Dict[str, str]:
        """What convolutions run on, by precision: "wgmma" (on 9.0, checked), "mma" (from 8.0 on) or "wmma"."""
        rows = json.loads(self.library.csg_kernel_report(self.handle).decode("utf-8"))
        names = " ".join(row["name"] for row in rows)
        families = ("wgmma", "mma", "wmma")
        return {precision: next((family for family in families if "_%s_%s_" % (short, family) in names), "none")
                for precision, short in (("fp16", "f16"), ("int8", "i8"))}  # fmt: skip

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts."""
        return {
            "convolutions": self.convolutions,
            "library": (self.library.csg_build_info() or b"").decode("utf-8", "replace"),
            "image": self.source,
            "compute_capability": self.context.info.capability,
        }

    def close(self) -> None:
        """Unload the kernels. May be called twice."""
        self._finalizer()
        self.handle = None


def require_capability(context: Context) -> None:
    """Raises EnvironmentMismatch for a GPU that is too old for the kernels, whatever the image."""
    if context.info.capability < LEAST:
        raise EnvironmentMismatch(
            "%s: expected compute capability %d.%d or higher, found %d.%d; use --backend native"
            % (context.info.name, *divmod(LEAST, 10), *divmod(context.info.capability, 10))
        )


def outlook(context: Context) -> str:
    """Where the kernels for a device come from, in words. Compiles nothing.

    Raises:
        EnvironmentMismatch: there is no way; the message ends in what to do.
    """
    require_capability(context)
    linked = linked_kernels(context)
    if linked is not None:
        text = "linked in, convolutions in fp16 on %s" % linked.convolutions["fp16"]
        linked.close()
        return text
    capability = context.info.capability
    compiler = nvrtc.find_compiler(capability, context.info.driver)
    code = compiler.code(capability)
    text = "crispseg build --backend cuda compiles them for %s with NVRTC %d.%d" % (code, *compiler.version)
    if code.startswith("compute_"):
        text += ", which does not know sm_%d yet: the driver compiles that when it loads it" % capability
    return text


def open_kernels(context: Context, bundle: Bundle) -> Kernels:
    """The kernels for this device: linked in, else from the bundle's cache.

    Raises:
        EnvironmentMismatch: neither is there, or none fits; the message names the command that builds them.
    """
    require_capability(context)
    linked = linked_kernels(context)
    if linked is not None:
        return linked
    artefact = cache.find(bundle.path, identity(context))
    return Kernels(context, artefact.read(IMAGE))


def identity(context: Context) -> cache.Identity:
    """What a compiled image depends on: the sources and the architecture, nothing of the bundle."""
    sources = nvrtc.sources_hash(nvrtc.kernel_sources())
    environment = {"compute_capability": context.info.capability, "kernels_sha256": sources}
    return cache.Identity("cuda", "kernels", {}, {}, environment)


def build(bundle: Bundle, context: Context, progress: Optional[Callable[..., None]] = None) -> cache.Artefact:
    """Put an image of the kernels for this device into the bundle's cache; one that is there already is kept, unless it
    is PTX and an NVRTC that knows the device has come since.

    Raises:
        EnvironmentMismatch: no NVRTC, or the kernels do not compile.
        InputError: the bundle cannot be written.
    """
    require_capability(context)
    wanted = identity(context)
    try:
        found = cache.find(bundle.path, wanted)
        found.read(IMAGE)
        if not _better(context, found):
            return found
    except CrispsegError:
        pass
    cache.require_room(bundle.path)
    linked = linked_kernels(context)
    image, facts = cuda_loader.embedded_image(), {"image": "linked into the library"}
    if linked is not None:
        linked.close()
    else:
        if progress:
            progress(0, 1, "compiling the kernels for sm_%d" % context.info.capability)
        compiler = nvrtc.find_compiler(context.info.capability, context.info.driver)
        image = nvrtc.compile_kernels(compiler, context.info.capability, nvrtc.kernel_sources())
        Kernels(context, image).close()  # refused now rather than at run
        facts = {"image": "NVRTC %d.%d" % compiler.version,
                 "architecture": compiler.code(context.info.capability)}  # fmt: skip
    if progress:
        progress(1, 1)
    assert image is not None
    return cache.store(bundle.path, wanted, {IMAGE: image}, facts)


def _better(context: Context, found: cache.Artefact) -> bool:
    """Whether an image in PTX can be had as machine code now."""
    if not str(found.facts.get("architecture", "")).startswith("compute_"):
        return False
    try:
        compiler = nvrtc.find_compiler(context.info.capability, context.info.driver)
    except EnvironmentMismatch:
        return False
    return compiler.target(context.info.capability) > 0


def linked_kernels(context: Context) -> Optional[Kernels]:
    """The kernels inside the library, when it was built with some for this device.

    Raises:
        EnvironmentMismatch: they broke the CUDA context, and with it the device for this process.
    """
    if cuda_loader.embedded_image() is None:
        return None
    try:
        return Kernels(context)
    except EnvironmentMismatch:
        if not context.alive:  # no other image runs either, and the message says what to do
            raise
        return None
