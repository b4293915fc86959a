"""What a line in chat is: a message, a command, or a command that was mistyped. Pure text.

A command is only its exact form: "help" is one and "help me write a letter" is a message. With a leading slash the line
is always a command, so there "save my notes" gets its usage; a message of several lines never is one.
"""

import re
from dataclasses import dataclass

HELP = """\
help                     this list
clear                    forget the conversation
save FILE                keep the conversation in the current folder
load FILE                take up a conversation that was saved
peers                    who computes which layers
connect PEER_ID ADDR     reach a peer
exit, quit, Ctrl-D       leave
The same works with a leading slash. Any other line is a message, also one
that only begins like a command, as "save the whales" does. Alt-Enter begins a
new line of a message. Space, Esc or Ctrl-C stops an answer."""

_ARGUMENTS = {
    "help": "",
    "clear": "",
    "save": "FILE",
    "load": "FILE",
    "peers": "",
    "connect": "PEER_ID ADDR",
    "exit": "",
    "quit": "",
}
_SLASHED = re.compile(r"/([A-Za-z]\S*)")
_COMMAND_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_ADDRESS = re.compile(r"\S+:\d{1,5}")


@dataclass(frozen=True, slots=True)
class Message:
    """What the user says to the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """What the user wants from the chat itself."""

    name: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mistake:
    """A command that does not exist or lacks something; ``advice`` is one line."""

    advice: str


def read_line(line: str) -> Message | Command | Mistake | None:
    """What a line is; None if it is blank."""
    text = line.strip()
    if not text:
        return None
    words = text.split()
    slashed = _SLASHED.fullmatch(words[0])
    if "\n" in text or (slashed and not _COMMAND_NAME.fullmatch(slashed[1])):
        return Message(text)
    if slashed:
        return _slashed(slashed[1].lower(), tuple(words[1:]))
    name, arguments = words[0], tuple(words[1:])
    if name not in _ARGUMENTS:
        return Message(text)
    if len(arguments) == len(_ARGUMENTS[name].split()) and (name != "connect" or _ADDRESS.fullmatch(arguments[1])):
        return Command(name, arguments)
    return Message(text) if arguments else Mistake(_usage(name))


def _slashed(name: str, arguments: tuple[str, ...]) -> Command | Mistake:
    if name not in _ARGUMENTS:
        return Mistake(f"/{name} is no command; help lists them")
    if len(arguments) != len(_ARGUMENTS[name].split()):
        return Mistake(_usage(name))
    return Command(name, arguments)


def _usage(name: str) -> str:
    return f"usage: {name} {_ARGUMENTS[name]}".rstrip()
