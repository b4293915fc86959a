"""What the authority of a network keeps in a folder: which invites it made, and what it has revoked.

    issued.jsonl   a line for each invite; never its token, which is nowhere but with whom it was given to
    revocations    the signed list as members hand it on, see revocations.py
    lock           held while either is changed, so that of two commands at once neither undoes the other

Files are replaced whole and have mode 0600. A shell: what is decided here is only which serials leave the list.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ..errors import MembershipError, NetworkError
from .grant import LAST_SECOND, SERIAL_BYTES, Grant
from .identity import Identity, PeerId, make_private_folders
from .revocations import MAX_REVOCATIONS_BYTES, Revocations

REVOCATIONS = "revocations"  # the file's name
KEPT_S = 24 * 3600  # a revoked serial stays on the list after its grant expires: for members whose clock is slow

_ISSUED = "issued.jsonl"
_LOCK = "lock"


class IssuedInvite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of issued.jsonl; ``serial`` is in hexadecimal, ``expires_at`` seconds since 1970."""

    serial: Annotated[str, msgspec.Meta(pattern=rf"\A[0-9a-f]{{{2 * SERIAL_BYTES}}}\Z")]
    role: Literal["serve", "chat"]
    expires_at: Annotated[int, msgspec.Meta(ge=0, le=LAST_SECOND)]
    note: str = ""

    @classmethod
    def of(cls, grant: Grant, note: str) -> "IssuedInvite":
        """The line for a grant."""
        return msgspec.convert(
            {"serial": grant.serial.hex(), "role": str(grant.role), "expires_at": grant.expires_at, "note": note},
            cls,
        )


class AuthorityFiles:
    """The files of the network whose authority is ``authority``. ``folder`` is made when something is written."""

    def __init__(self, authority: Identity, folder: Path) -> None:
        self._authority = authority
        self._folder = folder

    def invites(self) -> list[IssuedInvite]:
        """Those that were made, the oldest first. Raises NetworkError where the file is damaged."""
        path = self._folder / _ISSUED
        invites = []
        for number, line in enumerate((_read(path) or b"").splitlines(), 1):
            try:
                invites.append(msgspec.json.decode(line, type=IssuedInvite))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise NetworkError(f"{path}, line {number}, is no invite: {error}; mend or remove the line") from error
        return invites

    def add(self, invite: IssuedInvite) -> None:
        """Note an invite, before anybody gets its token. Raises NetworkError where it cannot be."""
        with self._locked():
            lines = [msgspec.json.encode(one) + b"\n" for one in (*self.invites(), invite)]
            write_private(self._folder / _ISSUED, b"".join(lines))

    def revocations(self) -> Revocations:
        """The newest list. Raises NetworkError where the file is damaged or another network's."""
        path = self._folder / REVOCATIONS
        blob = load_revocations(path)
        try:
            return Revocations() if blob is None else Revocations.unpack(blob, self._authority.peer_id)
        except MembershipError as error:
            advice = "move it away, then revoke again what it held"
            raise NetworkError(f"{path} is damaged: {error}; {advice}") from error

    def revoke(self, what: bytes | PeerId, now: float) -> bool:
        """Put a serial or a peer on the list; False where it is on it already.

        Raises:
            MembershipError: the list is full.
            NetworkError: the files cannot be read or written.
        """
        with self._locked():
            old = self.revocations()
            if what in old.serials or what in old.peers:
                return False
            new = old.with_peer(what, now) if isinstance(what, PeerId) else old.with_serial(what, now)
            over = {bytes.fromhex(one.serial) for one in self.invites() if one.expires_at + KEPT_S <= now}
            write_private(self._folder / REVOCATIONS, new.without(frozenset(over)).signed_by(self._authority))
            return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            make_private_folders(self._folder)
            descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise NetworkError(f"{self._folder} cannot be written to: {error.strerror}") from error
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)  # which ends the lock


def load_revocations(path: Path) -> bytes | None:
    """The signed list in the file REVOCATIONS, for Network.take_revocations; None where there is no file.

    The file is only ever replaced, so its inode and time of change say whether to look again.

    Raises:
        NetworkError: it cannot be read, or is larger than any list.
    """
    blob = _read(path, MAX_REVOCATIONS_BYTES + 1)
    if blob is not None and len(blob) > MAX_REVOCATIONS_BYTES:
        raise NetworkError(f"{path} is no list of revocations: one has at most {MAX_REVOCATIONS_BYTES} bytes")
    return blob


def write_private(path: Path, content: bytes) -> None:
    """Replace the regular file ``path``, or make it, whole or not at all, with mode 0600.

    Raises:
        NetworkError: it cannot be written, or is there and not a regular file.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise NetworkError(f"{path} is not a regular file, and nothing secret is written to it")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError as error:
        raise NetworkError(f"{path} cannot be written: {error.strerror}") from error


def _read(path: Path, num_bytes: int = -1) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(num_bytes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NetworkError(f"{path} cannot be read: {error.strerror}") from error


def _lock(descriptor: int) -> None:
    """Wait until nobody else holds the lock; on systems without such locks, do not."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
