"""SwitchboardDiscovery: who is announced, as a node's network hears it on the local network and from relays."""

import time
from contextlib import suppress

from ..errors import NetworkError
from .directory import Directory, Entry
from .switchboard import Heard, Switchboard, Vanished


class SwitchboardDiscovery:
    """See Discovery; for a node that does nothing else with its network."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._directory = Directory()

    def now(self) -> float:
        """See Discovery."""
        return self._switchboard.now()

    def entries(self) -> list[Entry]:
        """See Discovery."""
        return self._directory.entries()

    def turn(self, timeout_s: float) -> bool:
        """See Discovery."""
        has_news = False
        for event in self._switchboard.poll(timeout_s):
            if isinstance(event, Heard):
                with suppress(NetworkError):  # looked at already, so this is a clock that was set meanwhile
                    has_news |= self._directory.put(event.blob, self.now(), time.time(), event.via) is not None
            elif isinstance(event, Vanished):
                has_news |= self._directory.gone(event.peer)
        return bool(self._directory.expire(self.now())) or has_news
