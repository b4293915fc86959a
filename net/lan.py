"""Lan: announcements on the local network, by multicast DNS (RFC 6762) and service discovery over it (RFC 6763).

A node is an instance of ``_hopformer._udp``, named by its peer id; its signed announcement is the TXT record, cut into
strings of at most 255 bytes: "0=...", "1=...", and so on. A thin shell over zeroconf that believes nothing: it hands on
whatever bytes carry the peer's name, and a goodbye is a hint that anybody on the network could have sent.

Not here: what the bytes say (announcement.py), and who is listed (directory.py). IPv4 only; a node without it is found
at a relay.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from zeroconf import Error, InterfaceChoice, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from ..errors import IdentityError, NetworkError, WireError
from .announcement import MAX_ANNOUNCEMENT_BYTES, MAX_VALID_S, peek
from .identity import PeerId

logger = logging.getLogger(__name__)

SERVICE = "_hopformer._udp.local."
LAN_BYTES = 1100  # of an announcement, with the records around it one Ethernet frame; a longer one goes in fragments
MAX_SERVICES = 256  # whose goodbyes are heeded; a network has fewer, and of more the longest silent is forgotten
MAX_TOLD_PER_S = 128  # announcements that are handed on, after MAX_SERVICES at once; at 0.3 ms for each they take 4%
RESCAN_S = 15.0  # a laptop joins another network: whoever is there hears of it within so long
START_S = 5.0
CLOSE_S = 2.0  # three goodbyes, an eighth of a second apart, on a machine that is busy

_MAX_STRING_BYTES = 255  # RFC 6763, section 6.1


class Lan:
    """One node on the local network. It lives in a running loop.

    Args:
        tell: gets what others announce, as they signed it; nothing of it is proven. Neither of the two may raise.
        tell_gone: gets who is said to be gone.
    """

    def __init__(self, tell: Callable[[bytes], None], tell_gone: Callable[[PeerId], None]) -> None:
        self._tell = tell
        self._tell_gone = tell_gone
        self._interfaces: Sequence[str] | None = None
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._publisher: asyncio.Task[None] | None = None
        self._wanted: bytes | None = None
        self._changed = asyncio.Event()
        self._own: PeerId | None = None
        self._told: dict[PeerId, None] = {}  # the longest silent first
        self._allowance = float(MAX_SERVICES)
        self._allowed_at = 0.0

    async def start(self, interfaces: Sequence[str] | None = None) -> None:
        """Listen on the interfaces with these addresses, or on all there are, also those that come up later.

        Raises:
            NetworkError: multicast DNS cannot be used here.
        """
        self._interfaces = interfaces
        try:
            self._zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All if interfaces is None else list(interfaces))
            await self._zeroconf.zeroconf.async_wait_for_start(START_S)
        except (OSError, RuntimeError, ValueError, Error) as error:
            await self.close()
            raise NetworkError(f"the local network cannot be searched by multicast DNS: {error}") from error
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._on_change])
        self._publisher = asyncio.create_task(self._publish(self._zeroconf))

    def announce(self, blob: bytes | None) -> None:
        """Say this from now on, in place of what was said before; None takes it back.

        Raises:
            WireError: it is no announcement.
        """
        self._wanted = blob
        self._own = peek(blob)[0] if blob is not None else self._own
        self._changed.set()

    async def close(self) -> None:
        """Say goodbye and give everything back."""
        if self._publisher is not None:
            self._publisher.cancel()
            await asyncio.wait((self._publisher,))
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            with contextlib.suppress(TimeoutError, Error):
                await asyncio.wait_for(self._zeroconf.async_close(), CLOSE_S)
        self._publisher = self._browser = self._zeroconf = None

    # ---- what others say

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        try:
            peer = PeerId.parse(name.removesuffix(f".{service_type}"))
        except IdentityError:
            return
        if peer == self._own:
            return
        if state_change is ServiceStateChange.Removed:
            if peer in self._told:
                del self._told[peer]
                self._tell_gone(peer)
            return
        info = AsyncServiceInfo(service_type, name)
        info.load_from_cache(zeroconf)
        blob = from_text(info.text or b"")
        if blob is not None and _is_of(blob, peer) and self._may_tell(asyncio.get_running_loop().time()):
            self._remember(peer)
            self._tell(blob)

    def _may_tell(self, now: float) -> bool:
        """Whether one more announcement is looked at; those that a flood takes the place of come again."""
        self._allowance = min(self._allowance + (now - self._allowed_at) * MAX_TOLD_PER_S, MAX_SERVICES)
        self._allowed_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _remember(self, peer: PeerId) -> None:
        self._told.pop(peer, None)
        if len(self._told) >= MAX_SERVICES:
            del self._told[next(iter(self._told))]
        self._told[peer] = None

    # ---- what this node says

    async def _publish(self, zeroconf: AsyncZeroconf) -> None:
        """Say what is wanted whenever it changes, one change after the other, on the interfaces that there are."""
        said: AsyncServiceInfo | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), RESCAN_S)
            is_changed = self._changed.is_set()
            self._changed.clear()
            try:
                if is_changed:
                    said = await _say(zeroconf, said, self._wanted)
                if self._interfaces is None:
                    await zeroconf.async_update_interfaces()
            except Exception:  # the node goes on without it, and the next change is tried again
                logger.exception("an announcement did not go out to the local network")


def to_text(blob: bytes) -> bytes:
    """The TXT record of an announcement."""
    text, index = b"", 0
    while blob:
        key = b"%d=" % index
        piece = blob[: _MAX_STRING_BYTES - len(key)]
        text += bytes((len(key) + len(piece),)) + key + piece
        blob, index = blob[len(piece) :], index + 1
    return text


def from_text(text: bytes) -> bytes | None:
    """The announcement in a TXT record; None where there is none."""
    blob, index = b"", 0
    while text and len(blob) <= MAX_ANNOUNCEMENT_BYTES:
        string, text = text[1 : 1 + text[0]], text[1 + text[0] :]
        key = b"%d=" % index
        if not string.startswith(key):
            return None
        blob, index = blob + string[len(key) :], index + 1
    return blob if 0 < len(blob) <= MAX_ANNOUNCEMENT_BYTES else None


def _is_of(blob: bytes, peer: PeerId) -> bool:
    """Whether an announcement says that it is of the peer whose name it came under."""
    try:
        return peek(blob)[0] == peer
    except WireError:
        return False


async def _say(zeroconf: AsyncZeroconf, said: AsyncServiceInfo | None, blob: bytes | None) -> AsyncServiceInfo | None:
    """Put ``blob`` in place of what was said; returns what is said from now on."""
    if blob is None:
        if said is not None:
            await (await zeroconf.async_unregister_service(said))
        return None
    peer = peek(blob)[0]
    info = AsyncServiceInfo(
        SERVICE,
        f"{peer}.{SERVICE}",
        port=0,  # the announcement has the addresses; others than peers have no use for them
        properties=to_text(blob),
        server=f"{peer}.local.",
        host_ttl=MAX_VALID_S,
        other_ttl=MAX_VALID_S,
    )
    if said is None:  # nobody else can have this name, so nobody is asked
        await (await zeroconf.async_register_service(info, cooperating_responders=True))
    else:
        await (await zeroconf.async_update_service(info))
    return info
