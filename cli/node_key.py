"""The key of a node, and whether another process of this machine is that node now.

Two processes with one key would be one peer to others, who part with the first when the second comes. So a node holds a
lock while it runs, and a chat beside it takes a key for the while.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .folders import config_folder

if TYPE_CHECKING:  # cryptography takes a while
    from ..net.identity import Identity

try:
    import fcntl
except ImportError:  # no POSIX: then nobody notices
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def load_key(path: Path | None) -> "Identity":
    """The key in a file, made on first use; the user's own if none is named. Raises IdentityError."""
    from ..net.identity import Identity

    return Identity.load_or_create(_named(path))


@contextmanager
def free_key(path: Path | None) -> "Iterator[Identity]":
    """The same for a node that serves nobody, while it runs: where another node has that key now, a new one.

    Raises:
        IdentityError: the file cannot be used.
        UsageError: the key was named, and another node has it.
    """
    from ..net.identity import Identity

    found = load_key(path)
    with _locked(_named(path)) as is_ours:
        if is_ours:
            yield found
            return
    if path is not None:
        raise UsageError(f"--identity {path} is the key of a node that runs on this machine; a caller has another")
    log.info("peer=%s runs on this machine: a key for this run is made", found.peer_id)
    yield Identity.generate()


@contextmanager
def key_in_use(path: Path | None) -> Iterator[None]:
    """Let others on this machine know that this process is the node with that key."""
    with _locked(_named(path)) as is_ours:
        if not is_ours:
            log.warning("another node on this machine has the same key; peers will talk to the later one alone")
        yield


def _named(path: Path | None) -> Path:
    return path or config_folder() / "identity.pem"


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock the key file; yields whether nobody else has."""
    if fcntl is None:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        is_ours = False
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        yield is_ours
    finally:
        os.close(descriptor)
