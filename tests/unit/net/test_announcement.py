"""Announcements: what is signed comes back, within the limits and in time, and everything else is refused in a line."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopformer.errors import WireError
from hopformer.net import announcement, wire
from hopformer.net.announcement import (
    MAX_ANNOUNCEMENT_BYTES,
    MAX_MEMBERSHIP_BYTES,
    MAX_RELAYS,
    MAX_SKEW_S,
    MAX_VALID_S,
    Announcement,
    parse,
    peek,
)
from hopformer.net.identity import Identity, PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.messages import Codec, Dtype

IDENTITY = Identity.from_seed(bytes(range(32)))
NETWORK = PeerId(bytes(22))
NOW = 1_800_000_000.0
BARE = Announcement(IDENTITY.public_bytes, int(NOW * 1000), 90, "demo", bytes(range(32)), 8)
FULL = Announcement(
    IDENTITY.public_bytes,
    int(NOW * 1000),
    90,
    "demo",
    bytes(range(32)),
    8,
    LayerRange(2, 6),
    True,
    Dtype.BFLOAT16,
    (Codec.EXACT, Codec.INT8),
    NETWORK,
    b"a proof",
    123_456,
    750,
    3,
    1200,
    8,
    "1.2.3",
    ("10.0.0.2:4711", "[fe80::1]:4711"),
    (f"{NETWORK}@relay.example:4433",),
)


def refusal(blob: bytes, now_unix: float = NOW) -> str:
    with pytest.raises(WireError) as caught:
        parse(blob, now_unix)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal_to_sign(one: Announcement) -> str:
    with pytest.raises(WireError) as caught:
        one.sign(IDENTITY)
    return str(caught.value)


def signed(body: bytes) -> bytes:
    """A body that our key signs, whatever is in it."""
    return body + IDENTITY.sign(announcement._DOMAIN + body)


@pytest.mark.parametrize("one", [BARE, FULL], ids=["bare", "full"])
def test_what_is_signed_comes_back(one: Announcement) -> None:
    blob = one.sign(IDENTITY)
    found = parse(blob, NOW)
    assert found == one and found.peer == IDENTITY.peer_id and isinstance(found.is_ready, bool)
    assert len(blob) == one.num_bytes and found.sign(IDENTITY) == blob
    assert peek(blob) == (IDENTITY.peer_id, one.issued_at)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=20)
announcements = st.builds(
    Announcement,
    st.just(IDENTITY.public_bytes),
    st.integers(int(NOW * 1000) - 30_000, int(NOW * 1000) + 30_000),
    st.integers(1, MAX_VALID_S),
    texts,
    st.binary(min_size=32, max_size=32),
    st.just(wire.MAX_LAYERS),
    st.builds(lambda start, num: LayerRange(start, start + num), st.integers(0, 4000), st.integers(1, 96)),
    st.booleans(),
    st.sampled_from(Dtype),
    st.lists(st.sampled_from(Codec), max_size=wire.MAX_CODECS).map(tuple),
    st.none() | st.binary(min_size=22, max_size=22).map(PeerId),
    st.binary(max_size=MAX_MEMBERSHIP_BYTES),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 16) - 1),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, wire.MAX_LAYERS),
    texts,
    st.lists(st.integers(1, 65535).map(lambda port: f"host.example:{port}"), max_size=wire.MAX_ADDRS).map(tuple),
    st.lists(st.just(FULL.relays[0]), max_size=MAX_RELAYS).map(tuple),
)


@given(announcements)
def test_any_announcement_comes_back_in_the_same_bytes(one: Announcement) -> None:
    blob = one.sign(IDENTITY)
    assert parse(blob, NOW) == one and parse(blob, NOW).sign(IDENTITY) == blob


@given(st.integers(0, FULL.num_bytes - 1), st.integers(1, 255))
def test_no_byte_can_be_changed(index: int, change: int) -> None:
    blob = bytearray(FULL.sign(IDENTITY))
    blob[index] ^= change
    refusal(bytes(blob))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"\1" + rest))
def test_bytes_that_are_no_announcement_are_refused_with_a_line(blob: bytes) -> None:
    refusal(blob)
    refusal(signed(blob))


@pytest.mark.parametrize("num_bytes", range(0, FULL.num_bytes - 64, 7))
def test_a_part_of_an_announcement_is_none(num_bytes: int) -> None:
    refusal(FULL.sign(IDENTITY)[:num_bytes])
    refusal(signed(FULL.sign(IDENTITY)[:num_bytes]))


def test_what_another_key_signed_is_forged() -> None:
    body = FULL.sign(IDENTITY)[:-64]
    stranger = Identity.from_seed(bytes(32))
    assert "forged" in refusal(body + stranger.sign(announcement._DOMAIN + body))


def test_a_signature_for_another_purpose_is_none_for_an_announcement() -> None:
    body = FULL.sign(IDENTITY)[:-64]
    assert "its key did not sign it" in refusal(body + IDENTITY.sign(body))


def test_bytes_behind_the_last_field_are_refused() -> None:
    assert "after its last field" in refusal(signed(FULL.sign(IDENTITY)[:-64] + b"\0"))


def test_another_format_is_refused_by_its_number() -> None:
    blob = b"\2" + FULL.sign(IDENTITY)[1:]
    assert "format 2" in refusal(blob)
    with pytest.raises(WireError, match="format 2"):
        peek(blob)


def test_a_flag_that_is_neither_yes_nor_no_is_refused() -> None:
    blob = BARE.sign(IDENTITY)
    index = 1 + 32 + 8 + 1 + 2 + len("demo") + 32 + 2  # whether it has layers
    assert blob[index] == 0
    assert "whether it has layers is 2" in refusal(signed(blob[:index] + b"\2" + blob[index + 1 : -64]))


# ---- time


def test_it_may_be_believed_for_as_long_as_it_says_and_clocks_may_differ() -> None:
    blob = FULL.sign(IDENTITY)
    assert parse(blob, NOW - MAX_SKEW_S) == parse(blob, NOW + 90 + MAX_SKEW_S - 0.001) == FULL
    assert "150 s old and was good for 90" in refusal(blob, NOW + 90 + MAX_SKEW_S)
    assert "issued 61 s from now; compare the clocks" in refusal(blob, NOW - MAX_SKEW_S - 1)


def test_what_remains_is_never_more_than_it_says() -> None:
    assert FULL.remaining_s(NOW - 60) == FULL.remaining_s(NOW) == FULL.remaining_s(NOW + MAX_SKEW_S) == 90
    assert FULL.remaining_s(NOW + MAX_SKEW_S + 1) == 89 and FULL.remaining_s(NOW + MAX_SKEW_S + 90) == 0


# ---- limits

AT_THE_LIMIT = [
    ("valid_s", MAX_VALID_S, MAX_VALID_S + 1),
    ("valid_s", 1, 0),
    ("issued_at", 0, -1),
    ("issued_at", (1 << 53) - 1, 1 << 53),
    ("model", "m" * wire.MAX_NAME_BYTES, "m" * (wire.MAX_NAME_BYTES + 1)),
    ("fingerprint", bytes(32), bytes(33)),
    ("fingerprint", bytes(32), bytes(31)),
    ("num_layers", wire.MAX_LAYERS, wire.MAX_LAYERS + 1),
    ("num_layers", 6, 5),
    ("layers", LayerRange(0, 8), LayerRange(0, 9)),
    ("layers", LayerRange(7, 8), LayerRange(8, 8)),
    ("codecs", (Codec.EXACT,) * wire.MAX_CODECS, (Codec.EXACT,) * (wire.MAX_CODECS + 1)),
    ("membership", bytes(MAX_MEMBERSHIP_BYTES), bytes(MAX_MEMBERSHIP_BYTES + 1)),
    ("free_tokens", (1 << 64) - 1, 1 << 64),
    ("layer_us", (1 << 32) - 1, 1 << 32),
    ("num_sessions", (1 << 16) - 1, 1 << 16),
    ("queue_us", (1 << 32) - 1, 1 << 32),
    ("max_layers", wire.MAX_LAYERS, wire.MAX_LAYERS + 1),
    ("version", "1" * wire.MAX_VERSION_BYTES, "1" * (wire.MAX_VERSION_BYTES + 1)),
    ("addrs", ("a:1",) * wire.MAX_ADDRS, ("a:1",) * (wire.MAX_ADDRS + 1)),
    ("addrs", ("a" * 253 + ":65535",), ("a" * 254 + ":65535",)),
    ("addrs", ("a:1",), ("a:0",)),
    ("relays", FULL.relays * MAX_RELAYS, FULL.relays * (MAX_RELAYS + 1)),
    ("relays", (f"{NETWORK}@{'a' * 253}:65535",), (f"{NETWORK}@{'a' * 254}:65535",)),
]


@pytest.mark.parametrize(
    ("field", "last", "beyond"), AT_THE_LIMIT, ids=[f"{one[0]}-{i}" for i, one in enumerate(AT_THE_LIMIT)]
)
def test_every_field_is_taken_at_its_limit_and_refused_beyond(field: str, last: object, beyond: object) -> None:
    at_limit = replace(FULL, **{field: last})
    blob = at_limit.sign(IDENTITY)
    assert parse(blob, at_limit.issued_at / 1000) == at_limit
    refusal_to_sign(replace(FULL, **{field: beyond}))


@pytest.mark.parametrize(
    ("field", "raw", "beyond"),
    [("valid_s", b"\x5a", b"\x79"), ("valid_s", b"\x5a", b"\0"), ("num_layers", b"\0\x08\1", b"\x10\1\1")],
)
def test_limits_are_looked_at_where_it_arrives_too(field: str, raw: bytes, beyond: bytes) -> None:
    """Whoever signs may have left them out."""
    body = FULL.sign(IDENTITY)[:-64]
    index = 41 if field == "valid_s" else body.index(raw)
    assert body[index : index + len(raw)] == raw
    assert field in refusal(signed(body[:index] + beyond + body[index + len(raw) :]))


def test_the_longest_announcement_is_taken_and_none_beyond() -> None:
    room = replace(FULL, addrs=("a" * 253 + ":65535",) * 13, membership=b"")
    longest = replace(room, membership=bytes(MAX_ANNOUNCEMENT_BYTES - room.num_bytes))
    blob = longest.sign(IDENTITY)
    assert len(blob) == MAX_ANNOUNCEMENT_BYTES and parse(blob, NOW) == longest
    beyond = replace(longest, membership=longest.membership + b"\0")
    assert f"{MAX_ANNOUNCEMENT_BYTES + 1}; 105 to {MAX_ANNOUNCEMENT_BYTES} are allowed" in refusal_to_sign(beyond)
    assert "the length of an announcement" in refusal(blob + b"\0")


# ---- what fields are to each other


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"layers": None}, "as ready that serves no layers"),
        ({"dtype": None}, "layers 2:6 are announced without the dtype"),
        ({"model": "a\x1b[31mb"}, "the model of an announcement has characters that cannot be printed"),
        ({"model": "a\u202eb"}, "the model of an announcement has characters that cannot be printed"),
        ({"version": "1\n2"}, "the version of an announcement has characters that cannot be printed"),
        ({"addrs": ("nowhere",)}, "address 'nowhere' of an announcement is not HOST:PORT"),
        ({"relays": ("relay.example:4433",)}, "is not PEER_ID@HOST:PORT"),
        ({"relays": (f"{str(NETWORK).upper()}@relay.example:4433",)}, "is not PEER_ID@HOST:PORT"),
        ({"relays": (f"{NETWORK}@relay.example",)}, "is not PEER_ID@HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_not_signed(changes: dict[str, object], line: str) -> None:
    assert line in refusal_to_sign(replace(FULL, **changes))  # type: ignore[arg-type]


def test_what_makes_no_sense_is_not_believed_either() -> None:
    body = FULL.sign(IDENTITY)[:-64]
    assert "cannot be printed" in refusal(signed(body.replace(b"demo", b"de\x07o")))
    assert "is not HOST:PORT" in refusal(signed(body.replace(b"10.0.0.2:4711", b"10.0.0.2/4711")))


def test_an_intent_says_which_layers_and_that_they_are_not_there_yet() -> None:
    intent = replace(FULL, is_ready=False)
    assert parse(intent.sign(IDENTITY), NOW) == intent


# ---- where there is little room


def test_addresses_are_left_out_last_first_until_it_fits() -> None:
    many = replace(FULL, addrs=tuple(f"10.0.0.{index}:4711" for index in range(16)), relays=FULL.relays * 3)
    fitted = many.fitted(500)
    assert fitted.num_bytes <= 500 and 1 < len(fitted.addrs) < 16
    assert fitted.addrs == many.addrs[: len(fitted.addrs)] and fitted.relays == many.relays
    assert replace(fitted, addrs=many.addrs[: len(fitted.addrs) + 1]).num_bytes > 500
    assert many.fitted(many.num_bytes) is many


def test_the_first_address_of_each_kind_stays_whatever_it_takes() -> None:
    least = replace(FULL, relays=FULL.relays * 3).fitted(100)
    assert (least.addrs, least.relays) == (FULL.addrs[:1], FULL.relays) and least.num_bytes > 100
