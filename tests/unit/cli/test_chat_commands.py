"""What a line in chat is."""

import pytest

from hopformer.cli.chat_commands import HELP, Command, Message, Mistake, read_line

COMMANDS = {
    "help": Command("help"),
    "  clear ": Command("clear"),
    "peers": Command("peers"),
    "exit": Command("exit"),
    "quit": Command("quit"),
    "save talk.csv": Command("save", ("talk.csv",)),
    "load talk.csv": Command("load", ("talk.csv",)),
    "connect abc 127.0.0.1:40123": Command("connect", ("abc", "127.0.0.1:40123")),
    "/help": Command("help"),
    "/HELP": Command("help"),
    "/save talk.csv": Command("save", ("talk.csv",)),
    "/connect abc host": Command("connect", ("abc", "host")),
}
MESSAGES = [
    "help me write a letter",
    "help!",
    "Help",
    "save the whales",
    "load balancing or sharding?",
    "exit strategies?",
    "exit the vim",
    "quit smoking",
    "clear skies today",
    "peers of the realm",
    "connect the dots",
    "/usr/bin/env is what?",
    "/ is a slash",
    "//",
    "/2 is a half",
    "hello",
    "help\nme",
    "/clear\nand more",
]
MISTAKES = {
    "/nothing": "/nothing is no command; help lists them",
    "/sav talk.csv": "/sav is no command; help lists them",
    "/save": "usage: save FILE",
    "/save my notes": "usage: save FILE",
    "save": "usage: save FILE",
    "load": "usage: load FILE",
    "connect": "usage: connect PEER_ID ADDR",
    "/clear all": "usage: clear",
    "/exit now": "usage: exit",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_the_exact_form_of_a_command_is_one(line: str) -> None:
    assert read_line(line) == COMMANDS[line]


@pytest.mark.parametrize("line", MESSAGES)
def test_a_line_that_only_begins_like_a_command_is_a_message(line: str) -> None:
    assert read_line(line) == Message(line)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistyped_command_gets_one_line_of_advice(line: str) -> None:
    assert read_line(line) == Mistake(MISTAKES[line])


@pytest.mark.parametrize("line", ["", " ", "\t\n"])
def test_a_blank_line_is_nothing(line: str) -> None:
    assert read_line(line) is None


def test_a_message_loses_the_blanks_around_it_only() -> None:
    assert read_line("  two  words\n") == Message("two  words")


def test_the_help_names_every_command_and_fits_80_columns() -> None:
    for name in ("help", "exit", "quit", "clear", "save FILE", "load FILE", "peers", "connect PEER_ID ADDR", "Space"):
        assert name in HELP
    assert max(map(len, HELP.splitlines())) <= 80
