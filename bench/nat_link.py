"""A cable between two network namespaces that is long and bad: what it carries arrives late, or not at all.

Run as ``python -m hopformer.bench.nat_link NAMESPACE/DEVICE NAMESPACE/DEVICE LINK``, both devices being taps and LINK
as ``EmulatedLink.to_text`` writes it; it prints a line once it carries, and ends when its standard input does. Where
the kernel has netem, netem is better: this is one Python process, and carries some ten thousand packets in a second.

Only IPv4 is delayed and lost. What finds neighbours (ARP) is not, or the first packet would take a round trip more.
"""

import fcntl
import os
import select
import struct
import sys
import time
from contextlib import suppress

from .net_emulator import Direction, EmulatedLink
from .netns import TUN, within

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_INTERFACE = struct.Struct("=16sH22x")
_FRAME_BYTES = 65_535
_FRAMES_PER_TURN = 64
_ETHERTYPE = slice(12, 14)
_IPV4 = b"\x08\x00"


def is_delayed(frame: bytes) -> bool:
    """Whether a frame is what the link is for."""
    return frame[_ETHERTYPE] == _IPV4


class Cable:
    """Two taps and what is on its way between them."""

    def __init__(self, taps: tuple[int, int], link: EmulatedLink) -> None:
        self._taps = taps
        self._ways = Direction(link, 0), Direction(link, 1)

    def run(self) -> None:
        """Carry until standard input ends."""
        first, second = self._taps
        there, back = self._ways
        while True:
            dues = [due for due in (there.next_due(), back.next_due()) if due is not None]
            wait_s = max(0.0, min(dues) - time.monotonic()) if dues else None
            readable, _, _ = select.select([first, second, sys.stdin], [], [], wait_s)
            if sys.stdin in readable and not sys.stdin.read(1):
                return
            for tap, other, way in ((first, second, there), (second, first, back)):
                if tap in readable:
                    _admit(tap, other, way)
                _write(other, way.take_due(time.monotonic()))


def _admit(tap: int, other: int, way: Direction) -> None:
    now = time.monotonic()
    for _ in range(_FRAMES_PER_TURN):
        try:
            frame = os.read(tap, _FRAME_BYTES)
        except OSError:
            return  # no more of them, or the interface is down
        if is_delayed(frame):
            way.admit(frame, now)
        else:
            _write(other, [frame])


def _write(tap: int, frames: list[bytes]) -> None:
    for frame in frames:
        with suppress(OSError):  # lost, as on any cable
            os.write(tap, frame)


def open_tap(place: str) -> int:
    """A tap that is there, NAMESPACE/DEVICE; reading from it does not wait."""
    namespace, _, device = place.partition("/")

    def attach() -> int:
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, _TUNSETIFF, _INTERFACE.pack(device.encode(), _TAP_WITHOUT_HEADER))
        return tap

    return within(namespace, attach)


def main(first: str, second: str, link: str) -> None:
    """See the module's docstring."""
    cable = Cable((open_tap(first), open_tap(second)), EmulatedLink.from_text(link))
    print("carries", flush=True)
    cable.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
