"""``hopformer invite``: made, listed and taken back; what goes where, and what is refused."""

import json
import re
import stat
import time
from pathlib import Path

import pytest

from hopformer.cli.app import run
from hopformer.cli.folders import network_folder
from hopformer.cli.invite import MAX_EXPIRES_S, MAX_NOTE_CHARACTERS, parse_duration, parse_target
from hopformer.errors import MembershipError, UsageError
from hopformer.net.authority_files import REVOCATIONS, load_revocations
from hopformer.net.grant import Role
from hopformer.net.identity import Identity
from hopformer.net.invite import Token
from hopformer.net.membership import Network

JOINER = Identity.from_seed(b"\3" * 32).peer_id
NOW = time.time()

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "hopformer"


def make(capsys: Output, *arguments: str) -> Token:
    assert run(["invite", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == err.count("\n") == 1
    assert out.strip() not in err
    return Token.parse(out.strip(), NOW)


def listed(capsys: Output, *arguments: str) -> dict:
    assert run(["invite", "list", "--json", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def refused(capsys: Output, *arguments: str) -> tuple[int, str]:
    code = run(["invite", *arguments])
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"hopformer: .+\n", err)
    return code, err


def test_the_token_alone_is_on_stdout_and_what_it_is_on_stderr(capsys: Output, config: Path) -> None:
    began = int(time.time())
    assert run(["invite", "--role", "serve", "--expires", "12h", "--relay", "relay.example:4711"]) == 0
    out, err = capsys.readouterr()
    token, own = Token.parse(out.removesuffix("\n"), NOW), Identity.load(config / "identity.pem").peer_id
    assert token.grant.role == Role.SERVE and token.network == own
    assert token.grant.relays == (f"{own}@relay.example:4711",)
    assert began <= token.grant.expires_at - 12 * 3600 <= time.time()
    serial = token.grant.serial.hex()
    assert re.fullmatch(
        rf"invite {serial}, role serve, until 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: whoever has the token can join; "
        rf"hopformer invite revoke {serial} takes it back\n",
        err,
    )


def test_a_week_and_no_relay_are_the_defaults(capsys: Output) -> None:
    began = int(time.time())
    grant = make(capsys, "--role", "chat").grant
    assert (grant.role, grant.relays) == (Role.CHAT, ())
    assert began <= grant.expires_at - 7 * 86400 <= time.time()


def test_a_relay_of_another_key_keeps_its_id(capsys: Output) -> None:
    relays = (f"{JOINER}@[::1]:1", f"{JOINER}@10.0.0.1:2")
    assert make(capsys, "--role", "chat", "--relay", relays[0], "--relay", relays[1]).grant.relays == relays


def test_two_tokens_have_nothing_secret_in_common(capsys: Output) -> None:
    first, second = make(capsys, "--role", "chat"), make(capsys, "--role", "chat")
    assert first.grant.serial != second.grant.serial and first.grant.member != second.grant.member


def test_another_key_is_another_network(capsys: Output, tmp_path: Path) -> None:
    own, other = make(capsys, "--role", "chat"), tmp_path / "other.pem"
    token = make(capsys, "--role", "chat", "--identity", str(other))
    assert token.network == Identity.load(other).peer_id != own.network
    assert [one["serial"] for one in listed(capsys)["invites"]] == [own.grant.serial.hex()]
    found = listed(capsys, "--identity", str(other))
    assert found["network"] == str(token.network)
    assert [one["serial"] for one in found["invites"]] == [token.grant.serial.hex()]


def test_a_token_in_a_file_is_readable_by_its_owner_alone(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert run(["invite", "--role", "chat", "--output", str(path)]) == 0
    assert capsys.readouterr().out == "" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Token.parse(path.read_text().removesuffix("\n"), NOW).grant.role == Role.CHAT


def test_no_token_is_kept_where_it_was_made(capsys: Output, config: Path) -> None:
    assert run(["invite", "--role", "chat", "--note", "for Bob"]) == 0
    text = capsys.readouterr().out.strip()
    seed = Token.parse(text, NOW).text()[4:56]  # where the member's key is
    kept = [path for path in config.rglob("*") if path.is_file()]
    assert {path.name for path in kept} == {"identity.pem", "issued.jsonl", "lock"}
    assert all(seed.encode() not in path.read_bytes() for path in kept)


def test_the_list_shows_what_was_made_and_its_state(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["invite", "list"]) == 0
    assert "no invite was made with this key yet" in capsys.readouterr().out
    short = make(capsys, "--role", "serve", "--expires", "90s", "--note", "for [red]Bob[/red]").grant
    long = make(capsys, "--role", "chat", "--expires", "4w").grant
    gone = make(capsys, "--role", "chat").grant
    assert run(["invite", "revoke", gone.serial.hex().upper()]) == run(["invite", "revoke", str(JOINER)]) == 0
    capsys.readouterr()
    monkeypatch.setattr("hopformer.cli.invite.time.time", lambda: float(short.expires_at))
    found = listed(capsys)
    assert [(one["serial"], one["role"], one["state"]) for one in found["invites"]] == [
        (short.serial.hex(), "serve", "expired"),
        (long.serial.hex(), "chat", "good"),
        (gone.serial.hex(), "chat", "revoked"),
    ]
    assert found["invites"][0]["note"] == "for [red]Bob[/red]"
    assert found["revoked_peers"] == [str(JOINER)]
    assert run(["invite", "list"]) == 0
    out = capsys.readouterr().out
    assert f"network {long.network}\n" in out and f"revoked peer {JOINER}\n" in out
    for serial in (short.serial, long.serial, gone.serial):
        assert serial.hex() in out
    assert "for [red]Bob[/red]" in out


def test_what_is_revoked_no_longer_joins(capsys: Output) -> None:
    token, kept = make(capsys, "--role", "chat"), make(capsys, "--role", "chat")
    network, path = Network(token.network), network_folder(token.network) / REVOCATIONS
    assert network.admit(token.membership(JOINER), JOINER, NOW).roles == {Role.CHAT}
    assert run(["invite", "revoke", token.grant.serial.hex()]) == 0
    assert capsys.readouterr() == (f"invite {token.grant.serial.hex()} is revoked\n", "")
    blob = load_revocations(path)
    assert blob is not None and network.take_revocations(blob)
    with pytest.raises(MembershipError, match="was revoked"):
        network.admit(token.membership(JOINER), JOINER, NOW)
    assert network.admit(kept.membership(JOINER), JOINER, NOW).serial == kept.grant.serial
    assert run(["invite", "revoke", str(JOINER)]) == 0
    assert capsys.readouterr().out == f"peer {JOINER} is revoked\n"
    blob = load_revocations(path)
    assert blob is not None and network.take_revocations(blob)
    with pytest.raises(MembershipError, match=f"{JOINER} was revoked"):
        network.admit(kept.membership(JOINER), JOINER, NOW)


def test_what_is_revoked_already_is_no_error_and_no_new_list(capsys: Output) -> None:
    token = make(capsys, "--role", "chat")
    path = network_folder(token.network) / REVOCATIONS
    assert run(["invite", "revoke", token.grant.serial.hex()]) == 0
    before = path.read_bytes()
    assert run(["invite", "revoke", token.grant.serial.hex()]) == 0
    assert "was already revoked" in capsys.readouterr().out and path.read_bytes() == before


def test_a_serial_that_was_never_made_is_not_revoked_by_mistake(capsys: Output) -> None:
    code, err = refused(capsys, "revoke", "0123456789abcdef")
    assert code == 1 and "no invite 0123456789abcdef is listed for this key" in err
    assert run(["invite", "revoke", "0123456789abcdef", "--unlisted"]) == 0
    assert capsys.readouterr().out == "invite 0123456789abcdef is revoked\n"


def test_the_authority_cannot_be_revoked(capsys: Output) -> None:
    own = make(capsys, "--role", "chat").network
    code, err = refused(capsys, "revoke", str(own))
    assert code == 2 and "the network's own authority" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "an invite needs a role; pass --role serve or --role chat"),
        (["--role", "relay"], "--role"),
        (["--role", "chat", "--expires", "7"], "--expires '7' is no duration; write 90s, 30m, 12h, 7d or 4w"),
        (["--role", "chat", "--expires", "0d"], "--expires 0d is out of range"),
        (["--role", "chat", "--expires", "11000d"], "at most ten years"),
        (["--role", "chat", "--relay", "nowhere"], "--relay: relay "),
        (["--role", "chat", *["--relay", "h:1"] * 2], "--relay is given 2 times"),
        (["--role", "chat", *(x for i in range(5) for x in ("--relay", f"h:{i + 1}"))], "4 different ones"),
        (["--role", "chat", "--note", "x" * (MAX_NOTE_CHARACTERS + 1)], "--note is one line"),
        (["--role", "chat", "--note", "a\nb"], "--note is one line"),
        (["--role", "chat", "list"], "--role before list changes nothing; the flags of list go after it"),
        (["--identity", "x", "revoke", str(JOINER)], "--identity before revoke changes nothing"),
        (["revoke", "0123456789abcde"], "is neither a serial, which has 16 digits"),
        (["revoke", str(JOINER)[:-1] + "x"], "checksum"),
        (["renew"], "No such command"),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_no_invite(
    arguments: list[str], words: str, capsys: Output, config: Path
) -> None:
    code, err = refused(capsys, *arguments)
    assert code == 2 and words in err
    assert not (config / "networks").exists()


def test_an_invite_that_cannot_be_noted_is_not_handed_out(capsys: Output, config: Path) -> None:
    config.mkdir(parents=True)
    (config / "networks").write_text("a file is in the way")
    code, err = refused(capsys, "--role", "chat")
    assert code == 1 and "cannot be written to" in err


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("4w", 2419200)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text, "--expires") == seconds


def test_ten_years_are_the_longest() -> None:
    assert parse_duration(f"{MAX_EXPIRES_S}s", "--expires") == MAX_EXPIRES_S
    for text in (f"{MAX_EXPIRES_S + 1}s", "999999999999w"):
        with pytest.raises(UsageError, match="at most ten years"):
            parse_duration(text, "--expires")


@pytest.mark.parametrize("text", ["", "d", "7", "7 d", "-7d", "7.5d", "7D", "7y", "7d7h", "\u0667d", "1" * 13 + "s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        parse_duration(text, "--expires")


def test_a_serial_and_a_peer_id_are_told_apart_by_their_length() -> None:
    assert parse_target("00" * 7 + "fF") == bytes(7) + b"\xff"
    assert parse_target(str(JOINER).upper()) == JOINER
