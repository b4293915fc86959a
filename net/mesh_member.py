"""MeshMember: a node's part in a mesh, in the network's process: what it announces, and what it hears of others.

An announcement is said anew before it ceases to be good, and whenever this node may be reached in another way. What
others announce is taken up once it is proven, in a closed network of its members only, and told to the model's process.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from ..errors import MembershipError, NetworkError
from .admission import RECHECK_S
from .announcement import MAX_RELAYS, Announcement, parse
from .directory import Directory, Via
from .endpoint import Endpoint
from .grant import Role
from .identity import Identity, PeerId
from .lan import LAN_BYTES, Lan
from .membership import Network
from .switchboard import Event, Heard, Vanished
from .wire import MAX_ADDRS, MAX_ANNOUNCEMENT_BYTES

logger = logging.getLogger(__name__)

VALID_S = 90  # that an announcement is good: a node that dies without a word is listed for no longer
RENEW_S = 25.0  # so that two of three may be lost
TICK_S = 1.0


class MeshMember:
    """One node's part in a mesh.

    Args:
        network: the closed network that it is in; None where it is open.
        membership: what it shows of that.
        tell: gets Heard and Vanished.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        identity: Identity,
        network: Network | None,
        membership: bytes,
        tell: Callable[[Event], None],
    ) -> None:
        self._endpoint = endpoint
        self._identity = identity
        self._network = network
        self._membership = membership
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._directory = Directory(self._admit)
        self._lan: Lan | None = None
        self._own: Announcement | None = None
        self._renew_at = 0.0
        self._recheck_at = self._loop.time() + RECHECK_S
        self._issued_at = 0
        endpoint.heard = self._on_heard
        endpoint.revoked = self._on_revoked

    async def join_lan(self, interfaces: tuple[str, ...]) -> None:
        """Take part on the local network; on all interfaces where none are named. Raises NetworkError."""
        lan = Lan(lambda blob: self._take(blob, Via.LAN), lambda peer: self._forget(peer, Via.LAN))
        await lan.start(interfaces or None)
        self._lan = lan
        self._say()

    def publish(self, announcement: Announcement | None) -> None:
        """Announce this from now on."""
        self._own = announcement
        self._say()

    def refresh(self) -> None:
        """This node may be reached in another way than before."""
        self._say()

    def tick(self) -> None:
        """Time has passed; to be called every TICK_S."""
        now = self._loop.time()
        if now >= self._renew_at:
            self._say()
        for peer in self._directory.expire(now):
            self._tell(Vanished(peer))
        if now >= self._recheck_at:
            self._recheck_at = now + RECHECK_S
            self._endpoint.recheck()

    async def close(self) -> None:
        """Say goodbye on the local network."""
        if self._lan is not None:
            await self._lan.close()

    def _say(self) -> None:
        """Sign what is announced, with where this node is now, and say it everywhere."""
        self._renew_at = self._loop.time() + RENEW_S
        if self._own is None:
            self._endpoint.relays.announce(None)
            if self._lan is not None:
                self._lan.announce(None)
            return
        self._issued_at = max(int(time.time() * 1000), self._issued_at + 1)
        own = replace(
            self._own,
            issued_at=self._issued_at,
            valid_s=VALID_S,
            network=None if self._network is None else self._network.network_id,
            membership=self._membership,
            addrs=self._endpoint.addrs[:MAX_ADDRS],
            relays=self._endpoint.relays.addrs[:MAX_RELAYS],
        )
        self._endpoint.relays.announce(own.fitted(MAX_ANNOUNCEMENT_BYTES).sign(self._identity))
        if self._lan is not None:
            self._lan.announce(own.fitted(LAN_BYTES).sign(self._identity))

    # ---- what others say

    def _on_heard(self, said: bytes | PeerId) -> None:
        if isinstance(said, PeerId):
            self._forget(said, Via.RELAY)
        else:
            self._take(said, Via.RELAY)

    def _take(self, blob: bytes, via: Via) -> None:
        try:
            announcement = self._directory.put(blob, self._loop.time(), time.time(), via)
        except NetworkError as error:
            logger.debug("an announcement is not taken: %s", error)
            return
        if announcement is not None and announcement.peer != self._identity.peer_id:
            self._tell(Heard(announcement, blob, via))

    def _forget(self, peer: PeerId, via: Via) -> None:
        if self._directory.gone(peer, via):
            self._tell(Vanished(peer))

    def _admit(self, announcement: Announcement) -> None:
        """Raises MembershipError: the peer is of another network than this node, or may not serve in it."""
        if self._network is None:
            return
        member = self._network.admit(announcement.membership, announcement.peer, time.time())
        if Role.SERVE not in member.roles:
            raise MembershipError(f"{announcement.peer} may chat in this network, and not serve")

    def _on_revoked(self, revocations: bytes) -> None:
        if self._network is None:
            return
        try:
            changed = self._network.take_revocations(revocations)
        except MembershipError as error:
            logger.info("revocations are not taken: %s", error)
            return
        if not changed:
            return
        self._endpoint.relays.revoke(revocations)  # which of them has told us, and which knows it, is not worth asking
        self._loop.call_soon(self._endpoint.recheck)
        for entry in self._directory.entries():
            try:
                self._admit(entry.announcement)
            except MembershipError:
                if self._directory.gone(entry.announcement.peer):
                    self._tell(Vanished(entry.announcement.peer))


def unpublished(blob: bytes) -> Announcement:
    """The announcement that the model's process has made, as its own identity signed it. Raises WireError."""
    return parse(blob, time.time())
