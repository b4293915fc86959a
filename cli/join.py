"""``--join``: the token of a network, from the command line, a file or the environment."""

import logging
import os
import re
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MembershipError, UsageError

if TYPE_CHECKING:
    from ..net.invite import Token

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "HOPFORMER_TOKEN"

JoinOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN|FILE",
        help="Join a network by the token of hopformer invite, or a file that holds it. A file, or the variable "
        f"{TOKEN_VARIABLE}, keeps the token out of the list of processes.",
        rich_help_panel="Network",
        show_default=False,
    ),
]

_LIKE_A_TOKEN = re.compile(r"hop\d\w*", re.ASCII)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_token(join: str | None, env: Mapping[str, str], now: float) -> "Token | None":
    """The token that --join was given, or else HOPFORMER_TOKEN holds, or the file that either names; None without.

    Args:
        now: seconds since 1970.

    Raises:
        UsageError: it is neither a token nor a file that can be read.
        MembershipError: the token is damaged, forged or expired.
    """
    from ..net.invite import MIN_TOKEN_LENGTH, Token

    text, name = (join, "--join") if join is not None else (env.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE)
    text = text.strip()
    if not text and join is None:
        return None
    is_like = _LIKE_A_TOKEN.fullmatch(text) is not None
    if not (is_like and len(text) >= MIN_TOKEN_LENGTH) and os.path.exists(text):
        name = f"{name} {text}"
        text = _read_token_file(text, name)
    elif not is_like:
        shown = "" if len(text) > 100 or "hop" in text else f" {text!r}"  # no part of a token is ever shown
        raise UsageError(f"{name}{shown} is neither a token, which begins with hop1, nor a file")
    try:
        return Token.parse(text, now)
    except MembershipError as error:
        raise MembershipError(f"{name}: {error}") from error


def _read_token_file(path: str, name: str) -> str:
    """What is in a file, which may be a pipe; ``name`` is what it was given as."""
    from ..net.invite import MAX_TOKEN_LENGTH

    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            content = file.read(MAX_TOKEN_LENGTH + 3)  # and a newline; more is no token, whatever it is
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    if os.name == "posix" and stat.S_ISREG(info.st_mode) and info.st_mode & _OTHERS:
        mode = stat.S_IMODE(info.st_mode)
        log.warning("%s is open to others (mode %04o), who can join by it; run: chmod 600 %s", path, mode, path)
    return content.decode("utf-8", errors="replace").strip()
