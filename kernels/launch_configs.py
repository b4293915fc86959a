"""Launch configurations: tile sizes, warps and stages of each kernel, from a committed table a device family.

`hopformer bench kernels --sweep` measures candidates on a GPU and writes launch_configs/<family>.json; nothing is tuned
at run time. A table maps a kernel's name to rows, and the first row fits whose conditions all hold:

    {"decode": [{"for": {"dtype": "bfloat16"}, "use": {"BLOCK_N": 64, "num_warps": 4, "num_stages": 3}}]}

A family is a compute capability ("sm_90"), an AMD architecture ("gfx942"), or "interpreter", whose time goes by
operations, whatever their size.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import KernelError
from .backend import INTERPRETED, current_target

FOLDER = Path(__file__).parent / "launch_configs"
FAMILIES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "interpreter")

Table = dict[str, list[dict[str, dict[str, Any]]]]


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel is launched.

    Attributes:
        block: its constexprs, by name.
        num_warps, num_stages: of the compiler.
    """

    block: Mapping[str, int | bool]
    num_warps: int
    num_stages: int

    @property
    def keywords(self) -> dict[str, Any]:
        """All of it, as a launch takes it."""
        launch = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return {**self.block, **launch}


_overrides: ContextVar[Mapping[str, LaunchConfig]] = ContextVar("launch config overrides")


def find_config(kernel: str, **key: Any) -> LaunchConfig:
    """The configuration of ``kernel`` on the current device.

    Args:
        kernel: its name in the tables.
        key: what the tables' conditions speak of, such as dtype="bfloat16".

    Raises:
        KernelError: the family's table has no row that fits.
    """
    forced = _overrides.get({}).get(kernel)
    return forced if forced is not None else _find(family(), kernel, tuple(sorted(key.items())))


@contextmanager
def override(kernel: str, config: LaunchConfig) -> Iterator[None]:
    """Use ``config`` for ``kernel`` inside the block: how a sweep tries its candidates."""
    token = _overrides.set({**_overrides.get({}), kernel: config})
    try:
        yield
    finally:
        _overrides.reset(token)


def family() -> str:
    """The current device's family: of NVIDIA's the nearest that is not newer, of AMD's gfx942."""
    if INTERPRETED:
        return "interpreter"
    target = current_target()
    if target.backend != "cuda":
        return "gfx942"
    known = [int(name.removeprefix("sm_")) for name in FAMILIES if name.startswith("sm_")]
    return f"sm_{max((one for one in known if one <= target.arch), default=known[0])}"


@cache
def read_table(name: str) -> Table:
    """The table of the family ``name``."""
    table: Table = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return table


@cache
def _find(name: str, kernel: str, key: tuple[tuple[str, Any], ...]) -> LaunchConfig:
    given = dict(key)
    for row in read_table(name).get(kernel, []):
        if all(given[condition] == value for condition, value in row["for"].items()):
            return as_config(row["use"])
    raise KernelError(f"launch_configs/{name}.json has no row of {kernel} for {given}; sweep it, or add one")


def as_config(use: Mapping[str, Any]) -> LaunchConfig:
    """A row's "use" as a LaunchConfig."""
    block = {name: value for name, value in use.items() if name not in ("num_warps", "num_stages")}
    return LaunchConfig(block, use["num_warps"], use["num_stages"])
