"""Where the token to join by comes from, and what a user is told where there is none."""

import logging
import os
import threading
from pathlib import Path

import pytest

from hopformer.cli.join import TOKEN_VARIABLE, read_token
from hopformer.errors import MembershipError, UsageError
from hopformer.net.grant import Grant, Role
from hopformer.net.identity import Identity
from hopformer.net.invite import MAX_TOKEN_LENGTH, Token

AUTHOR, MEMBER = Identity.from_seed(b"\1" * 32), Identity.from_seed(b"\2" * 32)
NOW = 1_800_000_000
TOKENS = [
    Token.sign(Grant(AUTHOR.public_bytes, serial, Role.CHAT, NOW + 100, (), MEMBER.public_bytes), AUTHOR, MEMBER)
    for serial in (b"serial 1", b"serial 2")
]
TEXT, OTHER = (token.text() for token in TOKENS)


def private(path: Path, content: str, mode: int = 0o600) -> str:
    path.write_text(content)
    path.chmod(mode)
    return str(path)


def refused(kind: type[Exception], join: str | None, env: dict[str, str], now: float = NOW) -> str:
    with pytest.raises(kind) as caught:
        read_token(join, env, now)
    message = str(caught.value)
    assert "\n" not in message and TEXT[4:40] not in message, "an error shows the token"
    return message


def test_nothing_given_is_no_network() -> None:
    assert read_token(None, {}, NOW) is None
    assert read_token(None, {TOKEN_VARIABLE: " "}, NOW) is None


def test_the_flag_goes_before_the_variable() -> None:
    assert read_token(TEXT, {}, NOW) == read_token(None, {TOKEN_VARIABLE: TEXT}, NOW) == TOKENS[0]
    assert read_token(TEXT, {TOKEN_VARIABLE: OTHER}, NOW) == TOKENS[0]
    assert read_token(f" {TEXT}\n", {}, NOW) == TOKENS[0]


def test_either_may_name_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = private(tmp_path / "token", TEXT + "\n")
    assert read_token(path, {}, NOW) == read_token(None, {TOKEN_VARIABLE: path}, NOW) == TOKENS[0]
    assert caplog.records == []


def test_a_file_may_be_named_like_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    private(tmp_path / "hop1", TEXT)
    assert read_token("hop1", {}, NOW) == TOKENS[0]


def test_a_pipe_is_read_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o644)
    writer = threading.Thread(target=path.write_text, args=(TEXT + "\n",))
    writer.start()
    assert read_token(str(path), {}, NOW) == TOKENS[0] and caplog.records == []
    writer.join()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_that_is_open_to_others_is_a_warning(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = private(tmp_path / "token", TEXT, mode)
    assert read_token(path, {}, NOW) == TOKENS[0]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and f"run: chmod 600 {path}" in record.getMessage()
    assert TEXT not in record.getMessage()


def test_what_is_neither_a_token_nor_a_file_is_wrong_usage(tmp_path: Path) -> None:
    words = "is neither a token, which begins with hop1, nor a file"
    assert refused(UsageError, "my-token", {}) == f"--join 'my-token' {words}"
    assert refused(UsageError, "", {}) == f"--join '' {words}"
    assert refused(UsageError, None, {TOKEN_VARIABLE: "missing.txt"}) == f"{TOKEN_VARIABLE} 'missing.txt' {words}"
    assert refused(UsageError, f'"{TEXT}', {}) == refused(UsageError, f'"{TEXT[:70]}', {}) == f"--join {words}"
    assert "cannot be read: Is a directory" in refused(UsageError, str(tmp_path), {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TEXT[:120], "damaged: it was cut short"),
        (TEXT[:-4] + "2222", "damaged: it was cut short, or a character is mistyped"),
        (TEXT[:50] + "1" + TEXT[51:], "damaged: only the letters"),
        ("hop7" + TEXT[4:], "the version of the token is 7"),
        (Token(TOKENS[0].grant, b"\0" * 64, MEMBER).text(), "forged"),
    ],
)
def test_a_token_that_is_not_good_gets_a_line_with_where_it_was(text: str, words: str, tmp_path: Path) -> None:
    path = private(tmp_path / "token", text)
    for join, env, name in ((text, {}, "--join"), (None, {TOKEN_VARIABLE: text}, TOKEN_VARIABLE), (path, {}, path)):
        message = refused(MembershipError, join, env)
        assert name in message and words in message


def test_an_expired_token_says_when(tmp_path: Path) -> None:
    message = refused(MembershipError, private(tmp_path / "token", TEXT), {}, NOW + 100)
    assert "expired at 2027-01-15 08:01:40 UTC" in message


@pytest.mark.parametrize("content", ["", "hello", f"{TEXT}\n{OTHER}\n", TEXT + "a" * MAX_TOKEN_LENGTH, "\0\udcff"])
def test_a_file_with_something_else_in_it_is_no_token(content: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    assert str(path) in refused(MembershipError, str(path), {})
