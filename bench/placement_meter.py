"""Meter: over a simulated mesh's time, which share of it was served, and how evenly. Pure."""

import numpy as np

from ..net.layer_range import LayerRange


class Meter:
    """Owner of the copies and the rate of each layer, and of their integrals from ``start_s`` on.

    Attributes:
        whole_at: when all layers were served for the first time; None for never.
        num_holes: times after that, and after ``start_s``, when some layer was not.
        mended_s: how long those took that are over.
    """

    def __init__(self, num_layers: int, start_s: float) -> None:
        self.whole_at: float | None = None
        self.num_holes = 0
        self.mended_s: list[float] = []
        self.worst_balance = 1.0
        self.node_hours = 0.0
        self._copies = np.zeros(num_layers, np.int64)
        self._rates = np.zeros(num_layers)
        self._start_s = start_s
        self._now = 0.0
        self._hole_since: float | None = None
        self._measured_s = self._whole_s = self._covered_s = self._balance_s = 0.0
        self._look()

    def add(self, layers: LayerRange, layer_s: float) -> None:
        """Somebody serves ``layers`` from now on."""
        self._change(layers, 1, 1 / (layer_s * len(layers)))

    def remove(self, layers: LayerRange, layer_s: float) -> None:
        """And from now on no more."""
        self._change(layers, -1, -1 / (layer_s * len(layers)))

    def advance(self, now: float, num_nodes: int) -> None:
        """Nothing changed until ``now``."""
        took_s = max(now - max(self._now, self._start_s), 0.0)
        self._now = now
        if not took_s:
            return
        self._measured_s += took_s
        self._whole_s += took_s * (self._num_covered == len(self._copies))
        self._covered_s += took_s * self._num_covered / len(self._copies)
        self._balance_s += took_s * self._balance
        self.worst_balance = min(self.worst_balance, self._balance)
        self.node_hours += num_nodes * took_s / 3600

    @property
    def whole_percent(self) -> float:
        """Of the time with all layers served."""
        return self._percent(self._whole_s)

    @property
    def covered_percent(self) -> float:
        """Of the layers, over the time."""
        return self._percent(self._covered_s)

    @property
    def balance_percent(self) -> float:
        """The slowest layer's rate over the mean of all, over the time."""
        return self._percent(self._balance_s)

    def _percent(self, seconds: float) -> float:
        return 100 * seconds / self._measured_s if self._measured_s else 0.0

    def _change(self, layers: LayerRange, copies: int, rate: float) -> None:
        own = slice(layers.start, layers.end)
        self._copies[own] += copies
        assert (self._copies >= 0).all()
        self._rates[own] = np.where(self._copies[own] > 0, self._rates[own] + rate, 0.0)
        self._look()

    def _look(self) -> None:
        """Take up how it is now."""
        self._num_covered = int((self._copies > 0).sum())
        mean = self._rates.mean()
        self._balance = float(self._rates.min() / mean) if mean else 0.0
        is_whole = self._num_covered == len(self._copies)
        if is_whole and self.whole_at is None:
            self.whole_at = self._now
        if not is_whole and self._hole_since is None and self.whole_at is not None and self._now >= self._start_s:
            self._hole_since = self._now
            self.num_holes += 1
        elif is_whole and self._hole_since is not None:
            self.mended_s.append(self._now - self._hole_since)
            self._hole_since = None
