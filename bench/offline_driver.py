"""OfflineDriver: a Triton driver for a GPU that is not there. It compiles what is launched, and launches nothing.

With it active the package's own wrappers run on tensors of the meta device, so that what is compiled is what they
would launch: the same configurations, the same specialisation of arguments, the same code. Machine code comes from the
assembler that Triton's wheel brings along.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

_UNLIMITED = 1 << 30  # bytes of shared memory and threads: whether a kernel fits is for the reader of its code to say
_launches: ContextVar[Counter[str] | None] = ContextVar("launches of the offline driver", default=None)
_devices = count()  # JIT caches are per device number, and one number must never stand for two targets


@dataclass(frozen=True)
class Compiled:
    """One kernel as it came out of the compiler.

    Attributes:
        name: of the kernel function.
        constants: its constexprs, by name.
        metadata: Triton's, such as shared (bytes) and num_warps.
        files: kind ("cubin", "ptx", "amdgcn", ...) -> where it lies.
    """

    name: str
    constants: dict[str, Any]
    metadata: dict[str, Any]
    files: dict[str, Path]


class OfflineDriver(DriverBase):
    """A driver of one device of ``target``."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target
        self._device = next(_devices)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": _UNLIMITED},
            load_binary=lambda *arguments: (None, None, 0, 0, _UNLIMITED),
            unload_module=lambda module: None,
        )
        self.launcher_cls = _Launcher

    @classmethod
    def is_active(cls) -> bool:
        """Never by itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Unused: there is no launcher in C."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return self._target

    def get_current_device(self) -> int:
        """A number of its own."""
        return self._device

    def get_current_stream(self, device: int) -> int:
        """The only one."""
        return 0

    def get_active_torch_device(self) -> Any:
        """None that holds memory."""
        import torch

        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        """Nothing can be timed."""
        raise NotImplementedError("a device that is not there has no speed")


class _Launcher:
    """Launches nothing, and says so to whoever counts."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self._name = src.fn.__name__

    def __call__(self, *arguments: Any) -> None:
        counts = _launches.get()
        if counts is not None:
            counts[self._name] += 1


@contextmanager
def counting_launches() -> Iterator[Counter[str]]:
    """How often each kernel is launched inside the block, by name; the block is one of `compiling_for`."""
    counts: Counter[str] = Counter()
    token = _launches.set(counts)
    try:
        yield counts
    finally:
        _launches.reset(token)


@contextmanager
def compiling_for(target: GPUTarget) -> Iterator[list[Compiled]]:
    """Launches inside the block are compiled for ``target`` and appear in the list, each kernel once a specialisation.

    Not for a process that also uses a GPU or the interpreter.
    """
    compiled: list[Compiled] = []

    def listen(*, src: Any, metadata: dict[str, Any], metadata_group: dict[str, str], **rest: Any) -> None:
        files = {Path(name).suffix.removeprefix("."): Path(path) for name, path in metadata_group.items()}
        constants = {src.fn.arg_names[path[0]]: value for path, value in src.constants.items() if len(path) == 1}
        compiled.append(Compiled(src.fn.__name__, constants, metadata, files))

    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = listen
        triton.runtime.driver.set_active(OfflineDriver(target))
        try:
            yield compiled
        finally:
            # No driver can be put back where there is none: whoever launches next outside gets a device's own number
            triton.runtime.driver.set_active(None)
