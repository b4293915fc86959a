"""The token: a line of text that reads back, and gets one clear line where it does not."""

import base64
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopformer.errors import MembershipError
from hopformer.net.grant import MAX_RELAY_ADDR_BYTES, MAX_RELAYS, Grant, Role
from hopformer.net.identity import Identity, PeerId
from hopformer.net.invite import MAX_TOKEN_LENGTH, MIN_TOKEN_LENGTH, Token
from hopformer.net.membership import Network

AUTHOR, MEMBER, JOINER = (Identity.from_seed(bytes([seed]) * 32) for seed in (1, 2, 3))
NOW = 1_800_000_000
GRANT = Grant(
    AUTHOR.public_bytes, b"serial 1", Role.CHAT, NOW + 100, (f"{AUTHOR.peer_id}@[::1]:4711",), MEMBER.public_bytes
)
TEXT = Token.sign(GRANT, AUTHOR, MEMBER).text()
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def refusal(text: str, now: float = NOW) -> str:
    with pytest.raises(MembershipError) as caught:
        Token.parse(text, now)
    message = str(caught.value)
    assert "\n" not in message and (len(text) < 40 or text[4:40] not in message), "an error shows the token"
    return message


def spelled(raw: bytes) -> str:
    """A token of ``raw``, with a checksum that fits."""
    checksum = hashlib.sha256(b"hopformer token checksum v1\0" + raw).digest()[:4]
    return "hop1" + base64.b32encode(raw + checksum).decode().rstrip("=").lower()


def raw_of(text: str) -> bytes:
    rest = text[4:].upper()
    return base64.b32decode(rest + "=" * (-len(rest) % 8))[:-4]


def test_a_token_is_one_word_of_letters_and_digits_that_reads_back() -> None:
    assert TEXT.startswith("hop1") and TEXT.isalnum() and TEXT.isascii() and TEXT.lower() == TEXT
    token = Token.parse(TEXT, NOW)
    assert (token.grant, token.network, token.text()) == (GRANT, AUTHOR.peer_id, TEXT)
    assert spelled(raw_of(TEXT)) == TEXT


def test_what_joins_by_a_token_that_was_read_is_let_in() -> None:
    shown = Token.parse(TEXT, NOW).membership(JOINER.peer_id)
    assert Network(AUTHOR.peer_id).admit(shown, JOINER.peer_id, NOW).roles == {Role.CHAT}


def test_a_token_never_prints_its_key() -> None:
    token = Token.parse(TEXT, NOW)
    assert MEMBER.seed.hex() not in repr(token) and repr(MEMBER.seed) not in repr(token) and TEXT not in repr(token)


def test_the_shortest_and_the_longest_token_have_the_lengths_that_are_named() -> None:
    addr = "h" * (MAX_RELAY_ADDR_BYTES - 6) + ":65535"
    relays = tuple(f"{PeerId(bytes([index]) * 22)}@{addr}" for index in range(MAX_RELAYS))
    for given_relays, length in (((), MIN_TOKEN_LENGTH), (relays, MAX_TOKEN_LENGTH)):
        grant = replace(GRANT, relays=given_relays)
        text = Token.sign(grant, AUTHOR, MEMBER).text()
        assert len(text) == length and Token.parse(text, NOW).grant == grant
    assert f"at most {MAX_TOKEN_LENGTH}" in refusal(text + "a")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "this is no token"),
        ("hop", "this is no token"),
        ("hopformer", "this is no token"),
        (TEXT.upper(), "this is no token"),
        ("x" + TEXT, "this is no token"),
        ("hop2" + TEXT[4:], "the version of the token is 2; this hopformer knows 1"),
        ("hop1", "cut short"),
        (TEXT[:100], "cut short"),
        (TEXT[:-1], "damaged"),
        (TEXT + "\n", "only the letters"),
        (TEXT[:50] + "\n" + TEXT[50:], "only the letters"),
        (TEXT[:9] + "1" + TEXT[10:], "only the letters"),
        (TEXT[:9] + TEXT[9:].upper(), "only the letters"),
        (TEXT + "=", "only the letters"),
        (TEXT + "aaaaaaaa", "cut short"),
    ],
)
def test_what_is_no_token_gets_a_line_that_says_so(text: str, fault: str) -> None:
    assert fault in refusal(text)


def test_a_token_of_another_key_is_forged() -> None:
    signature = MEMBER.sign(b"hopformer grant v1\0" + GRANT.pack())
    forged = Token(GRANT, signature, MEMBER).text()
    assert refusal(forged) == "the token is forged: its signature is not that of the network which it names"


def test_a_changed_role_or_key_is_forged_though_the_checksum_fits() -> None:
    signature = GRANT.signed_by(AUTHOR)
    assert "forged" in refusal(Token(replace(GRANT, role=Role.SERVE), signature, MEMBER).text())
    assert "forged" in refusal(Token(replace(GRANT, expires_at=NOW + 9999), signature, MEMBER).text())
    assert "forged" in refusal(spelled(JOINER.seed + raw_of(TEXT)[32:]))


def test_a_grant_of_another_version_or_with_bytes_behind_it_is_refused() -> None:
    raw = raw_of(TEXT)
    assert "the version of the grant is 02" in refusal(spelled(raw[:96] + b"\2" + raw[97:]))
    assert "cannot be read" in refusal(spelled(raw + b"\0"))
    assert "cannot be read" in refusal(spelled(raw[:-1]))


def test_an_expired_token_says_when() -> None:
    assert Token.parse(TEXT, NOW + 99.9).grant == GRANT
    for now in (NOW + 100, NOW + 1e9):
        assert "the token expired at 2027-01-15 08:01:40 UTC" in refusal(TEXT, now)


def test_bits_to_spare_in_the_last_character_are_no_second_spelling() -> None:
    text = Token.sign(replace(GRANT, relays=()), AUTHOR, MEMBER).text()
    assert (len(text) - 4) * 5 % 8 == 2, "151 bytes leave two bits"
    for bits in (1, 2, 3):
        second = text[:-1] + ALPHABET[ALPHABET.index(text[-1]) ^ bits]
        assert raw_of(second) == raw_of(text) and "damaged" in refusal(second)


def test_every_mistyped_character_is_noticed() -> None:
    for place in range(4, len(TEXT)):
        wrong = ALPHABET[(ALPHABET.index(TEXT[place]) + 1 + place % 31) % 32]
        refusal(TEXT[:place] + wrong + TEXT[place + 1 :])


def test_every_truncation_is_noticed() -> None:
    for length in range(len(TEXT)):
        refusal(TEXT[:length])


@given(st.integers(0, len(TEXT) - 1), st.characters())
@settings(max_examples=300, deadline=None)
def test_any_other_character_anywhere_is_noticed(place: int, wrong: str) -> None:
    if wrong != TEXT[place]:
        refusal(TEXT[:place] + wrong + TEXT[place + 1 :])


@given(st.integers(0, len(raw_of(TEXT)) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_any_byte_that_somebody_changes_with_its_checksum_is_refused(place: int, flip: int) -> None:
    changed = bytearray(raw_of(TEXT))
    changed[place] ^= flip
    refusal(spelled(bytes(changed)))


@given(st.text(max_size=2000) | st.text(ALPHABET, max_size=2000).map(lambda text: "hop1" + text))
@settings(max_examples=200, deadline=None)
def test_texts_of_chance_are_refused(text: str) -> None:
    with pytest.raises(MembershipError):
        Token.parse(text, NOW)
