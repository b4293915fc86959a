"""Where a row was measured: the hardware, the software and the commit."""

import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

_Device = torch.device  # a name of its own: Machine has a field called torch
_ROOT = Path(__file__).resolve().parents[1]
_RESULTS = "bench/results"  # what a bench writes says nothing about what ran
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and software of a run.

    Attributes:
        commit: of the checkout that ran, with "-dirty" when files had changed other than results; None for an
            installed package.
        date: UTC, to the day.
        device: what ran: the CPU's own name, or the GPU's.
        num_cores: cores that the operating system has, whoever uses them.
        memory_gib: of the whole machine.
        gpu_memory_gib, driver, cuda, triton: of a GPU that ran, its driver, CUDA or ROCm and Triton; else None.
    """

    commit: str | None
    date: str
    device: str
    num_cores: int
    memory_gib: int
    system: str
    python: str
    torch: str
    gpu_memory_gib: int | None = None
    driver: str | None = None
    cuda: str | None = None
    triton: str | None = None

    @classmethod
    def here(cls, device: _Device | None = None) -> "Machine":
        """This one, now; ``device`` is what runs, the CPU if None."""
        gpu: dict[str, Any] = {} if device is None or device.type != "cuda" else _gpu(device)
        return cls(
            commit=_commit(),
            date=datetime.now(UTC).date().isoformat(),
            device=gpu.pop("name", None) or _cpu_name(),
            num_cores=psutil.cpu_count() or 1,
            memory_gib=round(psutil.virtual_memory().total / 2**30),
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            torch=installed_version("torch") or "",
            **gpu,
        )


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    if not (_ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){_RESULTS}")
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or a repository without a commit
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _gpu(device: _Device) -> dict[str, Any]:
    """Its name and the fields of Machine that are a GPU's."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30),
        "driver": _driver(),
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": installed_version("triton"),
    }


def _driver() -> str | None:
    """NVIDIA's driver; None where its tool is missing."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def _cpu_name() -> str:
    try:
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
