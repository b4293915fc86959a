"""A relay as a whole: its endpoint, its desk, and the loop that they live in. One process: it computes nothing."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import MembershipError, NetworkError
from .admission import RECHECK_S, RELAY_MAX_STRANGERS, Guests
from .announcement import Announcement
from .authority_files import load_revocations
from .directory import Directory
from .endpoint import Endpoint
from .grant import Role
from .identity import Identity, PeerId
from .membership import Network
from .relay_desk import TICK_S, RelayDesk
from .relay_metrics import RelayMetrics
from .relay_table import DEFAULT_RATE, RelayTable
from .switchboard import Event, PeerStats

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """How a relay runs.

    Attributes:
        listen: HOST:PORT each.
        allow: peers that may use it; None is everybody.
        network: whose members may as well; None where ``allow`` alone decides.
        max_rate: bytes a second that a channel passes on in each direction.
        revocations: a file that the network's authority keeps on this machine, read again when it changes.
    """

    listen: tuple[str, ...]
    allow: frozenset[PeerId] | None = None
    network: PeerId | None = None
    max_rate: int = DEFAULT_RATE
    revocations: Path | None = None


class RelayNode:
    """A relay that runs in the loop it is made in.

    Raises:
        NetworkError: it cannot listen where it is told to, or its file of revocations is damaged.
    """

    def __init__(self, identity: Identity, config: RelayConfig, metrics: RelayMetrics | None = None) -> None:
        self.peer_id = identity.peer_id
        self._config = config
        self._metrics = metrics
        self._network = None if config.network is None else Network(config.network)
        self._revocations_at: tuple[int, int] | None = None
        self._recheck_at = time.monotonic() + RECHECK_S
        guests = Guests(config.allow, self._network, RELAY_MAX_STRANGERS)
        self.endpoint = Endpoint(identity, guests, _ignore, is_relay=True)
        table = RelayTable(config.max_rate)
        self.desk = RelayDesk(self.endpoint, table, Directory(self._admit), self._network)
        self.endpoint.desk = self.desk
        self.endpoint.carrier.forwarder = self.desk
        self.read_revocations()
        try:
            self.endpoint.listen(config.listen)
        except NetworkError:
            self.endpoint.close()
            raise

    @property
    def addrs(self) -> tuple[str, ...]:
        """HOST:PORT each, where it listens."""
        return self.endpoint.addrs

    def stats(self) -> dict[PeerId, PeerStats]:
        """Everybody connected."""
        return self.endpoint.stats()

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Relay until ``stopped``; then tell the peers."""
        try:
            while not stopped():
                await asyncio.sleep(TICK_S / 4)
                self.tick()
        finally:
            self.close()

    def tick(self) -> None:
        """Do what is due."""
        self.desk.tick()
        try:
            self.read_revocations()
        except NetworkError as error:  # whoever was let in stays, and the next list is read again
            logger.warning("revocations are not taken: %s", error)
        if time.monotonic() >= self._recheck_at:
            self._recheck_at = time.monotonic() + RECHECK_S
            self.endpoint.recheck()
        if self._metrics is not None:
            self._metrics.turned(self.desk)

    def close(self) -> None:
        """Tell the peers, and give everything back."""
        self.endpoint.close()

    def read_revocations(self) -> None:
        """Take up the authority's file where it has changed, and part with whoever is no member any more.

        Raises:
            NetworkError: it is damaged, or another network's.
        """
        path = self._config.revocations
        if self._network is None or path is None:
            return
        with contextlib.suppress(OSError):
            info = path.stat()
            if (info.st_ino, info.st_mtime_ns) == self._revocations_at:
                return
            self._revocations_at = info.st_ino, info.st_mtime_ns
            blob = load_revocations(path)
            if blob is not None and self._network.take_revocations(blob):
                self.desk.tell_revoked()

    def _admit(self, announcement: Announcement) -> None:
        """Raises MembershipError: who announces may not serve in this relay's network."""
        peer = announcement.peer
        if self._network is None or self._config.allow is None or peer in self._config.allow:
            return
        member = self._network.admit(announcement.membership, peer, time.time())
        if Role.SERVE not in member.roles:
            raise MembershipError(f"{peer} may chat in this network, and not serve")


def _ignore(event: Event) -> None:
    """A relay has no use for messages that are not about relaying."""
