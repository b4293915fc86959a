"""DatagramSize: how large a datagram may be on the way in use, found out by padded challenges (as in RFC 8899).

8,900 bytes within a site, in fragments if need be, and what an Ethernet frame holds elsewhere. Not here: sending them.
"""

import math
from dataclasses import dataclass

from .congestion import SHORT_PATH_RTT_S
from .path_tries import MAX_PROBES, PROBE_S
from .quic import MIN_DATAGRAM_BYTES
from .ways import CHANNEL_PREFIX_BYTES, Relayed, Way, is_loopback, is_site

ETHERNET_DATAGRAM_BYTES = 1452  # 1,500 less the headers of IPv6 and UDP
SITE_DATAGRAM_BYTES = 8900  # a jumbo frame; where there are none the kernel makes six fragments, which still is faster

_RECHECK_S = 10.0  # a size that once passed may cease to when the route changes


@dataclass(slots=True, eq=False)
class _Asking:
    """A padded challenge on the way in use."""

    size: int
    again_at: float
    num_sent: int = 0


class DatagramSize:
    """The size that is known to get through, and the one that is tried.

    Args:
        most: try no larger ones.

    Attributes:
        datagram_bytes: what gets through.
    """

    def __init__(self, most: int) -> None:
        self.datagram_bytes = MIN_DATAGRAM_BYTES
        self._most = most
        self._asking: _Asking | None = None
        self._next_check = math.inf

    def begin(self, way: Way, rtt_s: float, now: float) -> None:
        """``way`` is in use from now on; a round trip on it takes ``rtt_s``, as far as is known."""
        self.datagram_bytes = MIN_DATAGRAM_BYTES
        self._ask(self._best(way, rtt_s), now)

    def stop(self) -> None:
        """No way is in use."""
        self._asking, self._next_check = None, math.inf

    def due(self, way: Way, now: float) -> int | None:
        """The size of a challenge to send now."""
        if self._asking is None and now >= self._next_check:
            self._ask(self.datagram_bytes, now)
        asking = self._asking
        if asking is not None and now >= asking.again_at and asking.num_sent >= MAX_PROBES:
            ethernet = ETHERNET_DATAGRAM_BYTES - _less(way)
            self._ask(ethernet if asking.size > ethernet else MIN_DATAGRAM_BYTES, now)
            asking = self._asking
        if asking is None or now < asking.again_at:
            return None
        asking.num_sent, asking.again_at = asking.num_sent + 1, now + PROBE_S
        return asking.size

    def answered(self, size: int, now: float) -> None:
        """A challenge of so many bytes on the way in use was answered."""
        if self._asking is not None and size == self._asking.size:
            self.datagram_bytes, self._asking = size, None
            self._next_check = now + _RECHECK_S

    def next_deadline(self) -> float:
        """When ``due`` may have something."""
        return self._next_check if self._asking is None else self._asking.again_at

    def _best(self, way: Way, rtt_s: float) -> int:
        """Private addresses may be far apart, in a VPN; there each lost fragment would cost all the others."""
        is_near = is_loopback(way) or (is_site(way) and rtt_s < SHORT_PATH_RTT_S)
        return min(SITE_DATAGRAM_BYTES if is_near else ETHERNET_DATAGRAM_BYTES, self._most) - _less(way)

    def _ask(self, size: int, now: float) -> None:
        if size < self.datagram_bytes or size <= MIN_DATAGRAM_BYTES:
            self.datagram_bytes = MIN_DATAGRAM_BYTES  # a larger one no longer passes
        self._next_check = math.inf
        self._asking = _Asking(size, now) if size > MIN_DATAGRAM_BYTES else None


def _less(way: Way) -> int:
    """Bytes that a channel needs for itself."""
    return CHANNEL_PREFIX_BYTES if isinstance(way, Relayed) else 0
