"""A picture of a run of `hopformer bench kernels`: the roofline with every kernel in it, and decode by context.

Left: each case of ours at its intensity (operations a byte), under the two ceilings measured in the run. Right: the
bandwidth at which decode reads keys and values as the context grows, ours and the baselines'.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import cycle
from math import atan2, degrees
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .kernel_case import thousands
from .kernel_table import JsonRow, device, operations, three_digits
from .rows import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, told apart by nearly everyone; ours is the vermilion
_INK = "#222222"
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31", "#222222")
_MARKERS = "osD^vPX*h"
_SIZE = (13.0, 5.6)  # inches; 1,950 x 840 at _DPI
_DPI = 150


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be drawn, before anything is measured.

    Raises:
        UsageError: no matplotlib, an unknown kind of file, or a folder that is not there.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib; run: pip install 'hopformer[bench]'")
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--plot {path} must end in one of {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")


def draw(rows: Sequence[JsonRow], path: Path) -> None:
    """Write the picture of one run's rows to ``path``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    measured = [row for row in rows if row["time_us"] is not None]
    contexts = [row for row in measured if row["context"] is not None]
    figure = Figure(figsize=_SIZE if contexts else (_SIZE[0] * 0.6, _SIZE[1]), dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, 2 if contexts else 1, squeeze=False)[0]
    along_line = _draw_roofline(
        axes[0], [row for row in measured if row["context"] is None and row["runs"] == OURS] or measured
    )
    if contexts:
        _draw_contexts(axes[1], contexts)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, which="major", color="#e8e8e8", linewidth=0.8)
        each.set_axisbelow(True)
        each.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    models = ", ".join(dict.fromkeys(row["model"] for row in measured))
    figure.suptitle(f"hopformer's kernels on {device(rows[0])}: {models}", fontsize=12, color=_INK)
    figure.draw_without_rendering()  # only now it is known how steep the line is on paper
    along_line()
    figure.savefig(path)


def _draw_roofline(axes: "Axes", rows: Sequence[JsonRow]) -> Callable[[], None]:
    """Every case of ours, a colour and a marker for each kernel; what is returned turns the line's label along it."""
    memory = max(row["ceiling_gb_per_s"] for row in rows) / 1e3  # TB/s
    matmul = max(row["ceiling_tflop_per_s"] for row in rows)
    points = {row["kernel"]: [other for other in rows if other["kernel"] == row["kernel"]] for row in rows}
    intensities = [row["num_operations"] / row["num_bytes"] for row in rows]
    low, ridge = min(intensities) / 3, matmul / memory
    high = max(*intensities, ridge) * 4
    axes.plot([low, ridge, high], [low * memory, matmul, matmul], color=_INK, linewidth=1.6, zorder=2)
    middle = (low * ridge) ** 0.5
    text: dict[str, Any] = {"fontsize": 8.5, "color": _INK}
    label = axes.annotate(
        f"memory {three_digits(1e3 * memory)} GB/s",
        (middle, middle * memory),
        xytext=(-5, 8),
        textcoords="offset points",
        ha="center",
        rotation_mode="anchor",
        **text,
    )
    axes.annotate(
        f"matmul {operations(matmul)}", (high, matmul), xytext=(-4, 5), textcoords="offset points", ha="right", **text
    )
    for (kernel, group), colour, marker in zip(points.items(), cycle(_COLOURS), cycle(_MARKERS), strict=False):
        x = [row["num_operations"] / row["num_bytes"] for row in group]
        y = [row["tflop_per_s"] for row in group]
        axes.scatter(x, y, s=46, c=colour, marker=marker, edgecolors="white", linewidths=0.7, label=kernel, zorder=3)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_ylim(min(row["tflop_per_s"] for row in rows) / 3, matmul * 3)
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("TFLOP/s")
    axes.set_title("Each case under the measured ceilings", fontsize=10, loc="left", color=_INK)
    axes.legend(fontsize=8, frameon=False, loc="lower right")

    def turn_label() -> None:
        (left, bottom), (right, top) = axes.transData.transform([(low, low * memory), (ridge, matmul)])
        label.set_rotation(degrees(atan2(top - bottom, right - left)))

    return turn_label


def _draw_contexts(axes: "Axes", rows: Sequence[JsonRow]) -> None:
    """A line for each implementation of decode attention, of the first model."""
    rows = [row for row in rows if row["model"] == rows[0]["model"]]
    memory = max(row["ceiling_gb_per_s"] for row in rows)
    names = sorted(dict.fromkeys(row["runs"] for row in rows), key=lambda name: name != OURS)
    axes.axhline(memory, color=_INK, linewidth=1.6)
    contexts = sorted({row["context"] for row in rows})
    axes.annotate(
        f"memory {three_digits(memory)} GB/s",
        (contexts[0], memory),
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=8.5,
        color=_INK,
    )
    for name, colour, marker in zip(names, cycle(_COLOURS), cycle(_MARKERS), strict=False):
        own = sorted((row for row in rows if row["runs"] == name), key=lambda row: row["context"])
        x, y = [row["context"] for row in own], [row["gb_per_s"] for row in own]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=2.2 if name == OURS else 1.4, label=name)
        low, high = ([row["num_bytes"] / row[end] / 1e3 for row in own] for end in ("time_us_p90", "time_us_p10"))
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [thousands(tokens) for tokens in contexts])
    axes.minorticks_off()
    best = max(row["gb_per_s"] for row in rows if row["runs"] == OURS)
    if best > memory / 4:
        axes.set_ylim(0, memory * 1.12)
    else:  # far from the ceiling: differences are seen as factors
        axes.set_yscale("log")
        axes.set_ylim(min(row["gb_per_s"] for row in rows) / 2, memory * 1.8)
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("GB/s of keys and values")
    shape = rows[0]["shape"].partition(" x ")[0]
    axes.set_title(f"Decode, batch of {shape}, by context (bands: p10 to p90)", fontsize=10, loc="left", color=_INK)
    axes.legend(fontsize=8, frameon=False, loc="best")
