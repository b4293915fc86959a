"""``hopformer invite``: make a token for the network whose authority is a key of ours, list them, take them back."""

import json
import re
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import IdentityError, MembershipError, UsageError
from .flags import command, default_command
from .folders import config_folder, network_folder
from .reporting import EXIT_DONE, EXIT_FAILED, print_error

if TYPE_CHECKING:  # a command that is none of these need not wait for them
    from ..net.authority_files import AuthorityFiles, IssuedInvite
    from ..net.identity import Identity, PeerId
    from ..net.revocations import Revocations

invite_app = typer.Typer()

MAX_NOTE_CHARACTERS = 200
MAX_EXPIRES_S = 3653 * 86400  # ten years
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,12})([smhdw])", re.ASCII)

IdentityOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The key of the network's authority, made on first use; this node's own, which is "
        "hopformer/identity.pem in the user's config folder, if not given.",
    ),
]


@dataclass(frozen=True, slots=True)
class InviteFlags:
    """What an invite is for."""

    role: Annotated[
        Literal["serve", "chat"] | None,
        typer.Option(help="What whoever joins by it may do: serve layers, or chat.", show_default=False),
    ] = None
    expires: Annotated[str, typer.Option(metavar="90s|30m|12h|7d|4w", help="How long it is good.")] = "7d"
    relay: Annotated[
        list[str],
        typer.Option(
            metavar="PEER_ID@HOST:PORT",
            help="Where the network can be met; HOST:PORT alone if the relay runs with this same key; up to 4.",
        ),
    ] = field(default_factory=list)
    note: Annotated[str, typer.Option(metavar="TEXT", help="Whom it is for; only you see it.")] = ""
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the token goes, readable by you alone; stdout, if not given."),
    ] = None


@default_command(invite_app)
def invite(identity: IdentityOption = None, *, flags: InviteFlags) -> int:
    """Print a token by which others join this network.

    The network is the key that signs: its id is the key's peer id. Whoever has the token can join, with any number of
    machines, until it expires or is revoked.
    """
    from ..net.authority_files import IssuedInvite, write_private
    from ..net.grant import Grant, Role, date
    from ..net.identity import Identity
    from ..net.invite import Token

    if flags.role is None:
        raise UsageError("an invite needs a role; pass --role serve or --role chat")
    if len(flags.note) > MAX_NOTE_CHARACTERS or not flags.note.isprintable():
        raise UsageError(f"--note is one line of at most {MAX_NOTE_CHARACTERS} printable characters")
    expires_at = int(time.time()) + parse_duration(flags.expires, "--expires")
    authority, files = _authority(identity)
    member = Identity.generate()
    grant = Grant(
        authority=authority.public_bytes,
        serial=secrets.token_bytes(8),
        role=Role[flags.role.upper()],
        expires_at=expires_at,
        relays=_relays(flags.relay, authority.peer_id),
        member=member.public_bytes,
    )
    line = Token.sign(grant, authority, member).text() + "\n"
    files.add(IssuedInvite.of(grant, flags.note))  # first: nothing goes out that cannot be revoked
    if flags.output is None:
        sys.stdout.write(line)
    else:
        write_private(flags.output, line.encode())
    print(
        f"invite {grant.serial.hex()}, role {grant.role}, until {date(expires_at)}: whoever has the token can join; "
        f"hopformer invite revoke {grant.serial.hex()} takes it back",
        file=sys.stderr,
    )
    return EXIT_DONE


@command(invite_app, name="list")
def list_invites(
    identity: IdentityOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> int:
    """Show the invites that were made with this key, and what was revoked."""
    authority, files = _authority(identity)
    invites, revoked = files.invites(), files.revocations()
    if json:
        _print_json(authority.peer_id, invites, revoked)
    else:
        _print_table(authority.peer_id, invites, revoked)
    return EXIT_DONE


@command(invite_app)
def revoke(
    what: Annotated[
        str,
        typer.Argument(
            metavar="SERIAL|PEER_ID",
            help="A serial ends every peer that joined by it, a peer id one.",
            show_default=False,
        ),
    ],
    identity: IdentityOption = None,
    unlisted: Annotated[
        bool, typer.Option("--unlisted", help="Even if hopformer invite list does not show the serial.")
    ] = False,
) -> int:
    """Take back an invite, or shut one peer out.

    A relay or node that runs with this key tells the others of the network.
    """
    target = parse_target(what)
    authority, files = _authority(identity)
    if target == authority.peer_id:
        raise UsageError("this is the network's own authority, which cannot be revoked")
    if isinstance(target, bytes) and not unlisted and all(one.serial != target.hex() for one in files.invites()):
        advice = "see hopformer invite list, or pass --unlisted to revoke it all the same"
        print_error(f"no invite {target.hex()} is listed for this key; {advice}")
        return EXIT_FAILED
    done = files.revoke(target, time.time())
    name = f"invite {target.hex()}" if isinstance(target, bytes) else f"peer {target}"
    print(f"{name} {'is' if done else 'was already'} revoked")
    return EXIT_DONE


def parse_duration(text: str, flag: str) -> int:
    """The seconds of 90s, 30m, 12h, 7d or 4w, which ``flag`` was given.

    Raises:
        UsageError: it is none, is nothing, or is longer than ten years.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UsageError(f"{flag} {text[:40]!r} is no duration; write 90s, 30m, 12h, 7d or 4w")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if not 0 < seconds <= MAX_EXPIRES_S:
        raise UsageError(f"{flag} {text} is out of range; it is above 0, and at most ten years")
    return seconds


def parse_target(text: str) -> "bytes | PeerId":
    """The serial or the peer id that ``text`` spells.

    Raises:
        UsageError: it spells neither.
    """
    from ..net.grant import SERIAL_BYTES
    from ..net.identity import PeerId

    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * SERIAL_BYTES}}}", text, re.ASCII):
        return bytes.fromhex(text)
    try:
        return PeerId.parse(text)
    except IdentityError as error:
        serial = f"a serial, which has {2 * SERIAL_BYTES} digits 0-9 and a-f"
        raise UsageError(f"{text[:64]!r} is neither {serial}, nor a peer id: {error}") from error


def _authority(path: Path | None) -> "tuple[Identity, AuthorityFiles]":
    from ..net.authority_files import AuthorityFiles
    from ..net.identity import Identity

    authority = Identity.load_or_create(path or config_folder() / "identity.pem")
    return authority, AuthorityFiles(authority, network_folder(authority.peer_id))


def _relays(texts: list[str], own: "PeerId") -> tuple[str, ...]:
    """The relays of a grant. Raises UsageError."""
    from ..net.grant import MAX_RELAYS, relay_text

    try:
        relays = tuple(relay_text(text, own) for text in texts)
    except MembershipError as error:
        raise UsageError(f"--relay: {error}") from error
    if len(relays) > MAX_RELAYS or len(set(relays)) != len(relays):
        raise UsageError(f"--relay is given {len(relays)} times; {MAX_RELAYS} different ones are allowed")
    return relays


def _states(invites: "list[IssuedInvite]", revoked: "Revocations") -> "Iterator[tuple[IssuedInvite, str]]":
    now = time.time()
    for one in invites:
        state = "expired" if one.expires_at <= now else "good"
        yield one, "revoked" if bytes.fromhex(one.serial) in revoked.serials else state


def _print_json(network: "PeerId", invites: "list[IssuedInvite]", revoked: "Revocations") -> None:
    rows = [
        {"serial": one.serial, "role": one.role, "expires_at": one.expires_at, "state": state, "note": one.note}
        for one, state in _states(invites, revoked)
    ]
    peers = sorted(map(str, revoked.peers))
    print(json.dumps({"network": str(network), "invites": rows, "revoked_peers": peers}))


def _print_table(network: "PeerId", invites: "list[IssuedInvite]", revoked: "Revocations") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..net.grant import date

    table = Table(box=None, pad_edge=False)
    for column in ("serial", "role", "until", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("note")
    for one, state in _states(invites, revoked):
        table.add_row(one.serial, one.role, date(one.expires_at), state, Text(one.note))  # no markup in a note
    print(f"network {network}")
    if invites:
        Console().print(table)
    else:
        print("no invite was made with this key yet; hopformer invite --role chat makes one")
    for peer in sorted(map(str, revoked.peers)):
        print(f"revoked peer {peer}")
