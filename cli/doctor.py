"""``hopformer doctor``: what this machine can run, and what is missing. It changes nothing and loads no model."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..errors import HopformerError
from .reporting import EXIT_DONE, EXIT_FAILED

_PACKAGES = (
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "jinja2",
    "typer",
    "rich",
    "prompt_toolkit",
    "cryptography",
    "psutil",
)
_DEMO_FILES = ("config.json", "tokenizer.json", "model.safetensors")
_ENOUGH_BYTES = 2**30  # the demo model, its keys and values, and torch itself take half of it
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked for.

    Attributes:
        advice: what to do, or what to expect, where it is missing.
        required: whether chat needs it.
    """

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = False

    def __str__(self) -> str:
        advice = "" if self.ok or not self.advice else f"; {self.advice}"
        return f"{'ok' if self.ok else 'missing':<8} {self.name:<12} {self.found}{advice}"


def doctor(as_json: bool) -> int:
    """Print every check; returns 0 when chat would run."""
    checks = list(examine())
    ready = all(check.ok for check in checks if check.required)
    if as_json:
        print(json.dumps({"ready": ready, "version": __version__, "checks": [asdict(check) for check in checks]}))
    else:
        print(*checks, sep="\n")
        print("hopformer chat would run" if ready else "hopformer chat would not run: see what is missing above")
    return EXIT_DONE if ready else EXIT_FAILED


def examine() -> Iterator[Check]:
    """Look at everything."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Check("python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer", required=True)
    yield _packages()
    yield _triton()
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", False, str(error), "run: pip install torch", required=True)
    else:
        yield Check("torch", True, torch.__version__, required=True)
        yield _gpu(torch)
        yield _cpu(torch)
        yield _projections(torch)
    yield _memory()
    yield _demo_model()
    yield _terminal()


def _packages() -> Check:
    versions = {name: _version(name) for name in _PACKAGES}
    absent = [name for name, found in versions.items() if found is None]
    if absent:
        return Check("packages", False, " ".join(absent), f"run: pip install {' '.join(absent)}", required=True)
    listed = ", ".join(f"{name} {found}" for name, found in versions.items())
    return Check("packages", True, listed, required=True)


def _triton() -> Check:
    found = _version("triton")
    return Check("triton", found is not None, found or "not installed", "only a GPU needs it: pip install triton")


def _gpu(torch: Any) -> Check:
    if not torch.cuda.is_available():
        return Check("gpu", False, "none that torch sees", "everything runs on the CPU")
    interface = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name} {properties.total_memory / _GIB:.0f} GiB")
    bf16 = "with bfloat16" if torch.cuda.is_bf16_supported() else "without bfloat16, so pass --dtype float16"
    return Check("gpu", True, f"{interface}, {', '.join(devices)}, {bf16}")


def _cpu(torch: Any) -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    return Check("cpu", True, f"{usable} cores, {torch.get_num_threads()} threads, {capability}")


def _projections(torch: Any) -> Check:
    from ..kernels.linear import can_pack

    packed = [name for name in ("bfloat16", "float32") if can_pack(getattr(torch, name))]
    advice = "answers on the CPU are slower; install a torch with oneDNN"
    return Check("projections", "bfloat16" in packed, f"packed weights for {' and '.join(packed) or 'no type'}", advice)


def _memory() -> Check:
    try:
        import psutil
    except ImportError as error:
        return Check("memory", False, str(error), "run: pip install psutil", required=True)
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB available"
    advice = f"chat with the demo model needs {_ENOUGH_BYTES / _GIB:.0f} GiB; close something"
    return Check("memory", memory.available >= _ENOUGH_BYTES, found, advice, required=True)


def _demo_model() -> Check:
    advice = "install hopformer again"
    try:
        from ..llama.hub import resolve_model

        folder = resolve_model("demo")
    except (HopformerError, ImportError) as error:
        return Check("demo model", False, str(error), advice, required=True)
    absent = [name for name in _DEMO_FILES if not (folder / name).is_file()]
    found = f"{folder} lacks {', '.join(absent)}" if absent else str(folder)
    return Check("demo model", not absent, found, advice, required=True)


def _terminal() -> Check:
    encoding = (sys.stdout.encoding or "").lower()
    size = shutil.get_terminal_size()
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    found = f"{size.columns}x{size.lines}, {encoding}" if interactive else "none: chat reads a turn per line of stdin"
    return Check("terminal", interactive, found)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
