"""CallerMesh: the peers that a caller finds by their announcements, in place of a BlocksMap or beside one."""

import time

from ..errors import NetworkError
from .announcement import Announcement
from .directory import Directory, Entry, Via
from .identity import PeerId
from .mesh_view import MeshView, why_nobody
from .peer_table import PeerTable

LOOK_S = 1.0  # between two looks where nothing was heard: peers that failed may have others in their place


class CallerMesh:
    """What is announced, and what of it the caller has taken up.

    Args:
        fingerprint: of the model that the caller wants.
        own: the caller.
    """

    def __init__(self, fingerprint: bytes, num_layers: int, own: PeerId) -> None:
        self._fingerprint = fingerprint
        self._num_layers = num_layers
        self._directory = Directory()
        self._view = MeshView(fingerprint, num_layers, own)
        self._is_changed = True
        self._look_at = 0.0

    @property
    def entries(self) -> list[Entry]:
        """Everybody who is announced."""
        return self._directory.entries()

    def heard(self, blob: bytes, via: Via, now: float) -> Announcement | None:
        """Somebody announces something; None where it is nothing new."""
        try:
            found = self._directory.put(blob, now, time.time(), via)
        except NetworkError:  # the network's process has looked at it, so this is a clock that was set
            return None
        self._is_changed |= found is not None
        return found

    def vanished(self, peer: PeerId) -> None:
        """A peer announces nothing any more."""
        self._is_changed |= self._directory.gone(peer)

    def bring(self, peers: PeerTable, now: float) -> tuple[PeerId, ...]:
        """Put into the table what has changed; returns who is to be asked again what it serves.

        It is called with every token, and looks at the directory only when something was heard or LOOK_S have passed.
        """
        self._is_changed |= bool(self._directory.expire(now))
        if not self._is_changed and now < self._look_at:
            return ()
        self._is_changed, self._look_at = False, now + LOOK_S
        changes = self._view.update(self._directory.entries(), peers.unusable(now))
        for peer, addrs in changes.reach.items():
            peers.add(peer, addrs)
        for peer in changes.gone:
            peers.forget(peer)
        return (*changes.ask, *(peer for peer in changes.reach if peers.entries[peer].is_connected))

    def why_nobody(self, model: str) -> str:
        """One line that says what is missing of the model, and what there is instead."""
        return why_nobody(model, self._fingerprint, self._num_layers, self._directory.entries())
