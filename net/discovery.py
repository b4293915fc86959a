"""Discovery: what the rest of a node sees of who is out there, however that was found out. Thin, and only a contract.

The network's process keeps it up to date from the local network and from relays; in tests it is a Directory.
"""

from typing import Protocol

from .directory import Entry


class Discovery(Protocol):
    """Who is announced. One thread uses it."""

    def now(self) -> float:
        """Seconds on the clock of the entries' times."""
        ...

    def entries(self) -> list[Entry]:
        """Everybody who is listed, as of the last turn."""
        ...

    def turn(self, timeout_s: float) -> bool:
        """Wait for news for at most so long; whether there were any.

        Raises:
            NetworkError: there is nothing to hear from any more.
        """
        ...
