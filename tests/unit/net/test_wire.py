"""Frames: what is sent comes back, whatever the pieces it comes in, and everything else is refused in time."""

import dataclasses
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hopformer
from hopformer.errors import WireError
from hopformer.net import membership, revocations, wire
from hopformer.net.identity import PEER_DIGEST_BYTES, PeerId
from hopformer.net.messages import (
    Ask,
    Close,
    Codec,
    Context,
    Done,
    Draw,
    Drawn,
    DrawnToken,
    Dtype,
    Goodbye,
    Lease,
    Message,
    Neighbours,
    Open,
    Opened,
    Reason,
    Refuse,
    Reroute,
    Rollback,
    Serving,
    SessionKey,
    Step,
)
from hopformer.net.relay_messages import (
    Accept,
    Announce,
    Candidates,
    Channel,
    IceOffer,
    Leave,
    Limited,
    Reach,
    Register,
    Registered,
    RelayMessage,
    Revoke,
    Unreachable,
    Watch,
    Withdrawn,
)
from hopformer.net.wire import Credit, Frame, FrameReader, Hello, LinkFrame, decode, encode

ANNA, BELA = PeerId(bytes(range(22))), PeerId(bytes(range(100, 122)))
SESSION = SessionKey(ANNA, 7)
NEIGHBOURS = Neighbours(ANNA, BELA, ("10.0.0.2:4711", "[fe80::1]:4711"))
OPEN = Open(SESSION, bytes(32), 0, 16, Dtype.BFLOAT16, Codec.EXACT, 4096, 60, NEIGHBOURS)
SERVING = Serving("demo", bytes(32), 0, 4, Dtype.FLOAT32, (Codec.EXACT, Codec.INT8), 1 << 40, 250, "1.2.3")
STEP = Step(SESSION, 3, 17, 2, 1, False, Dtype.BFLOAT16, Codec.EXACT, 5, bytes(range(20)))
CONTEXT = Context(SESSION, 9, (5, 70_000))
DRAW = Draw(SESSION, 3, 0.75, 40, 0.5, 0.25, 1.5, 1 << 40, 3)
DRAWN = Drawn(SESSION, 3, 17, (DrawnToken(70_000, ((70_000, -0.5), (5, -2.0))), DrawnToken(5, ())))
CHANNEL = bytes(range(7))
HELLO = Hello(bytes(8), bytes(range(8)), bytes(range(16)), b"a membership")
KINDS: dict[int, Frame] = {
    1: STEP,
    2: OPEN,
    3: Opened(SESSION),
    4: Done(SESSION, 3, 10, 20, 4),
    5: Reroute(SESSION, NEIGHBOURS, 17),
    6: Rollback(SESSION, 4, 5),
    7: Close(SESSION),
    8: Refuse(SESSION, Reason.BUSY, "no page is free"),
    9: Lease(SESSION),
    10: Goodbye(30),
    11: Ask(),
    12: SERVING,
    13: CONTEXT,
    14: DRAW,
    15: DRAWN,
    16: Register(),
    17: Registered("192.0.2.7:4711", 64 << 20),
    18: Reach(BELA),
    19: Channel(BELA, CHANNEL, True),
    20: Accept(CHANNEL),
    21: Unreachable(BELA, "it is not connected with this relay"),
    22: Leave(CHANNEL, "it is not needed any more"),
    23: Limited(CHANNEL, 17),
    24: Announce(b"what somebody has signed"),
    25: Watch(),
    26: Withdrawn(BELA),
    27: Revoke(b"a list that the authority has signed"),
    28: Candidates(("192.0.2.7:4711", "[2001:db8::1]:4711")),
    29: IceOffer(True, "ufrag", "a password", ("candidate 1 udp 2130706431 192.0.2.7 4711 typ host",)),
    128: HELLO,
    129: Credit(1 << 40),
}
EXAMPLES = list(KINDS.values())

u32 = st.integers(0, (1 << 32) - 1)
position = st.integers(0, wire.MAX_TOKENS)
peers = st.binary(min_size=22, max_size=22).map(PeerId)
sessions = st.builds(SessionKey, peers, st.integers(0, (1 << 64) - 1))
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
neighbours = st.builds(Neighbours, peers, peers, st.lists(text, max_size=wire.MAX_ADDRS).map(tuple))
fingerprints = st.binary(min_size=32, max_size=32)
spans = st.tuples(st.integers(0, wire.MAX_LAYERS - 1), st.integers(1, 40)).map(
    lambda one: (one[0], min(sum(one), wire.MAX_LAYERS))
)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    num_tokens, width = draw(st.integers(1, 17)), draw(st.integers(1, 300))
    num_wanted = draw(st.integers(0, num_tokens))
    dtype, codec = draw(st.sampled_from(Dtype)), draw(st.sampled_from(Codec))
    rows = draw(st.sampled_from([num_tokens, num_wanted]))
    payload = bytes(wire.payload_bytes(rows, width, dtype, codec))
    begin = draw(st.integers(0, wire.MAX_TOKENS - num_tokens))
    flags = draw(st.booleans()), draw(st.booleans())
    numbers = draw(u32), begin, num_tokens, num_wanted, flags[0]
    return Step(draw(sessions), *numbers, dtype, codec, width, payload, flags[1])


@st.composite
def opens(draw: st.DrawFn) -> Open:
    start, end = draw(spans)
    dtype, codec = draw(st.sampled_from(Dtype)), draw(st.sampled_from(Codec))
    tokens, lease = draw(st.integers(1, wire.MAX_TOKENS)), draw(st.integers(1, wire.MAX_LEASE_S))
    return Open(draw(sessions), draw(fingerprints), start, end, dtype, codec, tokens, lease, draw(neighbours))


@st.composite
def servings(draw: st.DrawFn) -> Serving:
    dtype = draw(st.none() | st.sampled_from(Dtype))
    start, end = (0, 0) if dtype is None else draw(spans)
    codecs = tuple(draw(st.lists(st.sampled_from(Codec), max_size=wire.MAX_CODECS)))
    free, version = draw(st.integers(0, (1 << 64) - 1)), draw(st.text(st.characters(codec="ascii"), max_size=64))
    return Serving(
        draw(text), draw(fingerprints), start, end, dtype, codecs, free, draw(u32), version, draw(st.booleans())
    )


@st.composite
def draws(draw: st.DrawFn) -> Draw:
    temperature, shares = draw(st.floats(0, 100)), [draw(st.floats(0, 1)) for _ in range(2)]
    penalty, seed = draw(st.floats(1e-3, 100)), draw(st.integers(0, (1 << 64) - 1))
    top_k, num_logprobs = draw(st.integers(0, (1 << 31) - 1)), draw(st.integers(0, wire.MAX_LOGPROBS))
    return Draw(draw(sessions), draw(u32), temperature, top_k, *shares, penalty, seed, num_logprobs)


token_ids = st.integers(0, wire.MAX_TOKEN_ID)
pairs = st.tuples(token_ids, st.floats(max_value=0, width=32))
drawn_tokens = st.builds(DrawnToken, token_ids, st.lists(pairs, max_size=9).map(tuple))
messages = st.one_of(
    st.builds(Context, sessions, position, st.lists(token_ids, max_size=40).map(tuple)),
    draws(),
    st.builds(Drawn, sessions, u32, position, st.lists(drawn_tokens, max_size=9).map(tuple)),
    steps(),
    opens(),
    st.builds(Opened, sessions),
    st.builds(Done, sessions, u32, u32, u32, st.integers(0, wire.MAX_BATCH_SIZE)),
    st.builds(Reroute, sessions, neighbours, position),
    st.builds(Rollback, sessions, u32, position),
    st.builds(Close, sessions),
    st.builds(Refuse, sessions, st.sampled_from(Reason), text),
    st.builds(Lease, sessions),
    st.builds(Goodbye, st.integers(0, wire.MAX_LEASE_S)),
    st.just(Ask()),
    servings(),
)
channels = st.binary(min_size=wire.CHANNEL_BYTES, max_size=wire.CHANNEL_BYTES)
relay_messages = st.one_of(
    st.sampled_from([Register(), Watch()]),
    st.builds(Registered, text, st.integers(1, 1 << 40)),
    st.builds(Reach, peers),
    st.builds(Channel, peers, channels, st.booleans()),
    st.builds(Accept, channels),
    st.builds(Unreachable, peers, text),
    st.builds(Leave, channels, text),
    st.builds(Limited, channels, st.integers(1, (1 << 32) - 1)),
    st.builds(Announce, st.binary(max_size=wire.MAX_ANNOUNCEMENT_BYTES)),
    st.builds(Withdrawn, peers),
    st.builds(Revoke, st.binary(max_size=200)),
    st.builds(Candidates, st.lists(text, max_size=wire.MAX_ADDRS).map(tuple)),
    st.builds(IceOffer, st.booleans(), text, text, st.lists(text.map(lambda one: one[:40]), max_size=8).map(tuple)),
)
link_frames = st.one_of(
    st.builds(
        Hello,
        st.binary(min_size=8, max_size=8),
        st.binary(min_size=8, max_size=8),
        st.binary(min_size=16, max_size=16),
        st.binary(max_size=wire.MAX_MEMBERSHIP_BYTES),
    ),
    st.builds(Credit, st.integers(0, (1 << 64) - 1)),
)
frames = messages | relay_messages | link_frames


def frame_of(message: Frame) -> bytes:
    return b"".join(encode(message))


def refused(frame: bytes, why: str) -> None:
    """Both ways in refuse it, and with the same reason."""
    with pytest.raises(WireError, match=why):
        decode(memoryview(frame))
    with pytest.raises(WireError, match=why):
        FrameReader().feed(frame)


def patched(message: Frame, offset: int, field: bytes) -> bytes:
    frame = frame_of(message)
    return frame[:offset] + field + frame[offset + len(field) :]


def test_every_kind_of_message_has_an_example_here() -> None:
    assert {type(one) for one in EXAMPLES} == {*Message.__args__, *RelayMessage.__args__, *LinkFrame.__args__}
    assert {kind: frame_of(one)[4] for kind, one in KINDS.items()} == {kind: kind for kind in KINDS}


@given(frames)
def test_what_is_sent_comes_back(message: Frame) -> None:
    frame = frame_of(message)
    assert decode(memoryview(frame)) == message
    assert FrameReader().feed(frame) == [message]


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 200)))
def test_pieces_of_any_length_make_the_same_messages(sent: list[Frame], lengths: list[int]) -> None:
    stream, reader, received = b"".join(map(frame_of, sent)), FrameReader(), []
    for length in lengths:
        received += reader.feed(stream[:length])
        stream = stream[length:]
    received += reader.feed(stream)
    assert received == sent and reader.num_buffered == 0


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_a_frame_cut_at_any_byte_is_no_message_yet_and_never_a_wrong_one(message: Frame) -> None:
    frame = frame_of(message)
    for length in range(len(frame)):
        reader = FrameReader()
        assert reader.feed(frame[:length]) == [] and reader.num_buffered == length
        assert reader.feed(frame[length:]) == [message] and reader.num_buffered == 0
        with pytest.raises(WireError):
            decode(memoryview(frame)[:length])


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_fields_that_end_early_or_late_are_refused(message: Frame) -> None:
    if isinstance(message, Step):
        message = dataclasses.replace(message, num_wanted=2)  # else half its rows would be a step as well
    fields = frame_of(message)[4:]
    for length in range(2, len(fields)):
        refused(struct.pack(">I", length) + fields[:length], "a frame ends|bytes; .* allowed|payload has")
    refused(struct.pack(">I", len(fields) + 1) + fields + b"\0", "after its last field|payload has")


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for_and_nothing_else(data: bytes) -> None:
    try:
        FrameReader().feed(data)
    except WireError as error:
        assert "\n" not in str(error)


@given(st.sampled_from(EXAMPLES), st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_makes_another_message_or_none(message: Frame, offset: int, value: int) -> None:
    frame = bytearray(frame_of(message))
    frame[offset % len(frame)] = value
    try:
        (other,) = FrameReader().feed(bytes(frame)) or [None]
    except WireError:
        return
    assert other is None or frame_of(other) == bytes(frame)  # one message, one spelling


def test_a_step_is_56_bytes_and_its_rows_uncopied() -> None:
    payload = bytearray(range(20))
    header, rows = encode(dataclasses.replace(STEP, payload=payload))
    assert len(header) == wire.STEP_HEADER_BYTES == 56
    payload[0] = 99
    assert rows[0] == 99
    assert header.hex(" ") == (
        "00 00 00 48 01 00 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10 11 12 13 14 15 "
        "00 00 00 00 00 00 00 07 00 00 00 03 00 00 00 11 00 00 00 02 00 01 01 00 00 00 00 05"
    )


def laid_out(kind: int, *fields: bytes) -> bytes:
    """A frame as docs/wire-format.md has it: length, kind, flags, and the fields one behind the other."""
    body = bytes((kind, 0)) + b"".join(fields)
    return len(body).to_bytes(4, "big") + body


def written(text: str) -> bytes:
    return len(text.encode()).to_bytes(2, "big") + text.encode()


def test_every_message_lies_as_the_document_says() -> None:
    """By hand, from the tables there and from nothing that wire.py knows."""
    session = ANNA.digest + bytes((0, 0, 0, 0, 0, 0, 0, 7))
    neighbours = ANNA.digest + BELA.digest + b"\x02" + written("10.0.0.2:4711") + written("[fe80::1]:4711")
    span, dtype_and_codec = b"\0\0\0\x10", b"\x01\0"
    layers_of_a_server, codecs = b"\0\0\0\x04", b"\x02\0\x01"
    frames = {
        OPEN: laid_out(2, session, bytes(32), span, dtype_and_codec, struct.pack(">II", 4096, 60), neighbours),
        Opened(SESSION): laid_out(3, session),
        Done(SESSION, 3, 10, 20, 4): laid_out(4, session, struct.pack(">IIIH", 3, 10, 20, 4)),
        Reroute(SESSION, NEIGHBOURS, 17): laid_out(5, session, neighbours, struct.pack(">I", 17)),
        Rollback(SESSION, 4, 5): laid_out(6, session, struct.pack(">II", 4, 5)),
        Close(SESSION): laid_out(7, session),
        Refuse(SESSION, Reason.BUSY, "full"): laid_out(8, session, b"\x01", written("full")),
        Lease(SESSION): laid_out(9, session),
        CONTEXT: laid_out(13, session, struct.pack(">IHII", 9, 2, 5, 70_000)),
        DRAW: laid_out(14, session, struct.pack(">IdIdddQB", 3, 0.75, 40, 0.5, 0.25, 1.5, 1 << 40, 3)),
        DRAWN: laid_out(
            15,
            session,
            struct.pack(">IIB", 3, 17, 2),
            struct.pack(">IBIfIf", 70_000, 2, 70_000, -0.5, 5, -2.0),
            struct.pack(">IB", 5, 0),
        ),
        Goodbye(30): laid_out(10, struct.pack(">I", 30)),
        Ask(): laid_out(11),
        SERVING: laid_out(
            12,
            written("demo"),
            bytes(32),
            layers_of_a_server,
            b"\x03",
            codecs,
            struct.pack(">QI", 1 << 40, 250),
            written("1.2.3"),
        ),
    }
    assert {type(message) for message in frames} | {Step} == set(Message.__args__)
    for message, frame in frames.items():
        assert frame_of(message) == frame


def test_rows_of_another_element_type_are_sent_as_their_bytes() -> None:
    rows = memoryview(bytes(20)).cast("H")
    assert decode(memoryview(frame_of(dataclasses.replace(STEP, payload=rows)))).payload == bytes(20)


def test_the_caller_gets_the_rows_it_wants_and_a_hop_gets_all() -> None:
    for num_rows in (1, 2):
        step = dataclasses.replace(STEP, payload=bytes(10 * num_rows))
        assert decode(memoryview(frame_of(step))) == step
    for num_bytes in (0, 9, 11, 19, 21, 30):
        with pytest.raises(WireError, match="payload has"):
            encode(dataclasses.replace(STEP, payload=bytes(num_bytes)))


@pytest.mark.parametrize(("width", "num_bytes"), [(1, 5), (127, 131), (128, 132), (129, 137), (256, 264), (4096, 4224)])
def test_int8_rows_have_a_scale_for_every_128_elements(width: int, num_bytes: int) -> None:
    assert wire.payload_bytes(1, width, Dtype.BFLOAT16, Codec.INT8) == num_bytes
    assert wire.payload_bytes(3, width, Dtype.FLOAT32, Codec.INT8) == 3 * num_bytes


@pytest.mark.parametrize("width", [1, 127, 4096, wire.MAX_WIDTH])
def test_max_rows_is_the_most_that_a_step_takes(width: int) -> None:
    rows = wire.max_rows(width, Dtype.FLOAT32, Codec.EXACT)
    step = Step(SESSION, 0, 0, rows, rows, True, Dtype.FLOAT32, Codec.EXACT, width, bytes(4 * rows * width))
    header, _ = encode(step)
    assert len(header) == 56
    with pytest.raises(WireError):
        encode(dataclasses.replace(step, num_tokens=rows + 1, payload=bytes(4 * (rows + 1) * width)))


def test_a_length_is_refused_before_anything_of_it_has_come() -> None:
    for kind, length in ((1, 0xFFFFFFFF), (1, wire.MAX_FRAME_BYTES - 3), (2, 8 << 10), (2, 1), (1, 51)):
        with pytest.raises(WireError, match="are allowed"):
            FrameReader().feed(struct.pack(">IBB", length, kind, 0))


def test_a_steps_header_is_refused_before_its_rows_have_come() -> None:
    header, _ = encode(STEP)
    length_of_another = struct.pack(">I", 52 + 30) + header[4:]
    reader = FrameReader()
    assert reader.feed(length_of_another[:55]) == []
    with pytest.raises(WireError, match="payload has 30 bytes"):
        reader.feed(length_of_another[55:])


def test_a_reader_takes_no_frame_beyond_its_own_limit() -> None:
    frame = frame_of(STEP)
    assert FrameReader(max_frame_bytes=len(frame)).feed(frame) == [STEP]
    with pytest.raises(WireError, match="the length of a frame is 76; 0 to 75 are allowed"):
        FrameReader(max_frame_bytes=len(frame) - 1).feed(frame[:6])


@pytest.mark.parametrize(
    ("offset", "field", "why"),
    [
        (4, b"\0", "kind 0 is no message of version 1"),
        (4, b"\x1e", "kind 30 is no message"),
        (4, b"\x7f", "kind 127 is no message"),
        (5, b"\x04", "flags 0x04"),
        (40, struct.pack(">I", wire.MAX_TOKENS), "position is"),
        (44, bytes(4), "num_tokens is 0"),
        (44, struct.pack(">I", wire.MAX_STEP_TOKENS + 1), "num_tokens is 32769"),
        (48, struct.pack(">H", 3), "num_wanted is 3"),
        (50, b"\0", "dtype 0 is unknown; there are 1, 2, 3"),
        (50, b"\x04", "dtype 4 is unknown"),
        (51, b"\x02", "codec 2 is unknown"),
        (52, bytes(4), "width is 0"),
        (52, struct.pack(">I", wire.MAX_WIDTH + 1), "width is 65537"),
    ],
)
def test_a_step_beyond_a_limit_is_refused(offset: int, field: bytes, why: str) -> None:
    refused(patched(STEP, offset, field), why)


@pytest.mark.parametrize("message", [one for one in EXAMPLES if not isinstance(one, Step)])
def test_other_frames_take_no_flags(message: Frame) -> None:
    refused(patched(message, 5, b"\x02"), "flags 0x02")
    if not isinstance(message, Serving):
        refused(patched(message, 5, b"\x01"), "flags 0x01")


def test_the_flags_that_mean_something_come_back() -> None:
    drawn = dataclasses.replace(STEP, is_drawn=True)
    assert frame_of(drawn) == patched(STEP, 5, b"\x02") and decode(memoryview(frame_of(drawn))) == drawn
    with_head = dataclasses.replace(SERVING, has_head=True)
    assert frame_of(with_head) == patched(SERVING, 5, b"\x01") and decode(memoryview(frame_of(with_head))) == with_head


LONG_ADDR = "x" * (wire.MAX_ADDR_BYTES + 1)
BEYOND = [
    dataclasses.replace(OPEN, start=16),
    dataclasses.replace(OPEN, start=5, end=4),
    dataclasses.replace(OPEN, end=wire.MAX_LAYERS + 1),
    dataclasses.replace(OPEN, fingerprint=bytes(31)),
    dataclasses.replace(OPEN, max_tokens=0),
    dataclasses.replace(OPEN, max_tokens=wire.MAX_TOKENS + 1),
    dataclasses.replace(OPEN, lease_s=0),
    dataclasses.replace(OPEN, lease_s=wire.MAX_LEASE_S + 1),
    dataclasses.replace(OPEN, neighbours=Neighbours(ANNA, BELA, ("a:1",) * (wire.MAX_ADDRS + 1))),
    dataclasses.replace(OPEN, neighbours=Neighbours(ANNA, BELA, (LONG_ADDR,))),
    dataclasses.replace(OPEN, session=SessionKey(ANNA, 1 << 64)),
    dataclasses.replace(STEP, session=SessionKey(ANNA, -1)),
    dataclasses.replace(STEP, step=1 << 32),
    dataclasses.replace(STEP, step=-1),
    Done(SESSION, 1, 1 << 32, 0, 0),
    Done(SESSION, 1, 0, 1 << 32, 0),
    Done(SESSION, 1, 0, 0, 1 << 16),
    Reroute(SESSION, NEIGHBOURS, wire.MAX_TOKENS + 1),
    Rollback(SESSION, 1, wire.MAX_TOKENS + 1),
    Refuse(SESSION, Reason.BUSY, "é" * 513),
    Refuse(SESSION, Reason.BUSY, "\ud800"),
    Goodbye(wire.MAX_LEASE_S + 1),
    dataclasses.replace(CONTEXT, token_ids=(0,) * (wire.MAX_CONTEXT_IDS + 1)),
    dataclasses.replace(CONTEXT, token_ids=(wire.MAX_TOKEN_ID + 1,)),
    dataclasses.replace(DRAW, temperature=100.1),
    dataclasses.replace(DRAW, temperature=float("nan")),
    dataclasses.replace(DRAW, top_k=1 << 31),
    dataclasses.replace(DRAW, top_p=1.1),
    dataclasses.replace(DRAW, min_p=-0.1),
    dataclasses.replace(DRAW, repetition_penalty=0.0),
    dataclasses.replace(DRAW, num_logprobs=wire.MAX_LOGPROBS + 1),
    dataclasses.replace(DRAWN, tokens=(DrawnToken(0, ()),) * (wire.MAX_DRAWN_TOKENS + 1)),
    dataclasses.replace(DRAWN, tokens=(DrawnToken(0, ((0, -1.0),) * 91),) * 10),
    dataclasses.replace(DRAWN, tokens=(DrawnToken(0, ((0, float("nan")),)),)),
    dataclasses.replace(SERVING, dtype=None),
    dataclasses.replace(SERVING, start=0, end=0),
    dataclasses.replace(SERVING, codecs=(Codec.EXACT,) * 9),
    dataclasses.replace(SERVING, free_tokens=1 << 64),
    dataclasses.replace(SERVING, model="m" * 257),
    dataclasses.replace(SERVING, version="v" * 65),
    Registered(LONG_ADDR, 1),
    Registered("192.0.2.7:1", 0),
    Registered("192.0.2.7:1", (1 << 40) + 1),
    Channel(BELA, bytes(6), True),
    Channel(BELA, bytes(8), True),
    Accept(bytes(8)),
    Unreachable(BELA, "x" * (wire.MAX_TEXT_BYTES + 1)),
    Leave(CHANNEL, "x" * (wire.MAX_TEXT_BYTES + 1)),
    Leave(b"", "it is not needed any more"),
    Limited(CHANNEL, 0),
    Limited(CHANNEL, 1 << 32),
    Announce(bytes(wire.MAX_ANNOUNCEMENT_BYTES + 1)),
    Revoke(bytes(wire.MAX_REVOCATIONS_BYTES + 1)),
    Candidates(("a:1",) * (wire.MAX_ADDRS + 1)),
    Candidates((LONG_ADDR,)),
    dataclasses.replace(HELLO, membership=bytes(wire.MAX_MEMBERSHIP_BYTES + 1)),
    dataclasses.replace(HELLO, instance=bytes(7)),
    dataclasses.replace(HELLO, path_key=bytes(17)),
    Credit(1 << 64),
]


@pytest.mark.parametrize("message", BEYOND)
def test_nothing_beyond_a_limit_is_sent(message: Frame) -> None:
    with pytest.raises(WireError):
        encode(message)


OPEN_FIELDS = 6 + PEER_DIGEST_BYTES + 8


@pytest.mark.parametrize(
    ("message", "offset", "field", "why"),
    [
        (OPEN, OPEN_FIELDS + 32, struct.pack(">HH", 3, 3), "layers 3 to 3"),
        (OPEN, OPEN_FIELDS + 34, b"\xff\xff", "end is 65535"),
        (OPEN, OPEN_FIELDS + 36, b"\0", "dtype 0"),
        (OPEN, OPEN_FIELDS + 38, b"\xff\xff\xff\xff", "max_tokens is"),
        (OPEN, OPEN_FIELDS + 42, b"\xff\xff\xff\xff", "lease_s is"),
        (OPEN, OPEN_FIELDS + 46 + 44, b"\xff", "the number of addresses is 255"),
        (OPEN, OPEN_FIELDS + 46 + 45, b"\xff\xff", "the length of an address is 65535"),
        (OPEN, OPEN_FIELDS + 46 + 47, b"\xff", "an address is not UTF-8"),
        (Refuse(SESSION, Reason.BUSY, "no"), OPEN_FIELDS, b"\x09", "reason 9 is unknown"),
        (Refuse(SESSION, Reason.BUSY, "no"), OPEN_FIELDS + 1, b"\xff\xff", "the length of text is 65535"),
        (CONTEXT, OPEN_FIELDS + 4, b"\xff\xff", "the number of token ids is 65535"),
        (DRAW, OPEN_FIELDS + 4, b"\x7f\xf8", "temperature is nan"),
        (DRAWN, OPEN_FIELDS + 8, b"\xff", "the number of tokens is 255"),
        (SERVING, 6 + 2 + 4 + 32 + 4, b"\0", "are no span"),
        (SERVING, 6 + 2 + 4 + 32 + 4 + 1, b"\xff", "the number of codecs is 255"),
        (Channel(BELA, CHANNEL, True), 6 + 22 + 7, b"\x02", "is_asker is 2; 0 to 1 are allowed"),
        (Registered("a:1", 1), 6 + 5, bytes(8), "max_rate is 0"),
        (Registered("a:1", 1), 6 + 5, b"\xff" * 8, "max_rate is 18446744073709551615"),
        (Limited(CHANNEL, 1), 6 + 7, bytes(4), "num_dropped is 0"),
        (Announce(b"said"), 6, b"\xff\xff", "the length of announcement is 65535"),
        (Revoke(b"list"), 6, b"\xff\xff", "the length of revocations is 65535"),
        (HELLO, 6 + 32, b"\x04\x01", "the length of membership is 1025"),
        (Candidates(()), 6, b"\x11", "the number of addresses is 17"),
        (Unreachable(BELA, "no"), 6 + 22, b"\xff\xff", "the length of text is 65535"),
    ],
)
def test_a_message_beyond_a_limit_is_refused(message: Frame, offset: int, field: bytes, why: str) -> None:
    refused(patched(message, offset, field), why)


def test_many_small_frames_at_once_are_read_in_time_that_grows_with_their_number() -> None:
    messages = FrameReader().feed(frame_of(Ask()) * 100_000)  # copying the rest after each would take minutes
    assert len(messages) == 100_000


ADDRS = ("x" * wire.MAX_ADDR_BYTES,) * wire.MAX_ADDRS


@pytest.mark.parametrize(
    "longest",
    [
        dataclasses.replace(OPEN, neighbours=Neighbours(ANNA, BELA, ADDRS)),
        Reroute(SESSION, Neighbours(ANNA, BELA, ADDRS), 1),
        Candidates(ADDRS),
        Announce(bytes(wire.MAX_ANNOUNCEMENT_BYTES)),
        dataclasses.replace(HELLO, membership=bytes(wire.MAX_MEMBERSHIP_BYTES)),
        Unreachable(BELA, "x" * wire.MAX_TEXT_BYTES),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_longest_of_each_small_message_fits(longest: Frame) -> None:
    assert decode(memoryview(frame_of(longest))) == longest
    assert len(frame_of(longest)) <= wire.MAX_SMALL_BYTES


def test_a_list_of_revocations_alone_may_be_longer_than_other_small_messages() -> None:
    longest = Revoke(bytes(wire.MAX_REVOCATIONS_BYTES))
    assert FrameReader(wire.MAX_REVOKE_BYTES).feed(frame_of(longest)) == [longest]
    assert wire.MAX_SMALL_BYTES < len(frame_of(longest)) == wire.MAX_REVOKE_BYTES
    with pytest.raises(WireError, match=f"kind 27 has {wire.MAX_REVOKE_BYTES + 1} bytes"):
        FrameReader().feed(struct.pack(">IBB", wire.MAX_REVOKE_BYTES - 3, 27, 0))
    for kind in (16, 24, 28, 128):
        with pytest.raises(WireError, match=f"kind {kind} has {wire.MAX_SMALL_BYTES + 1} bytes"):
            FrameReader().feed(struct.pack(">IBB", wire.MAX_SMALL_BYTES - 3, kind, 0))


def test_limits_that_are_named_in_two_places_are_the_same() -> None:
    assert wire.MAX_MEMBERSHIP_BYTES == membership.MAX_MEMBERSHIP_BYTES
    assert wire.MAX_REVOCATIONS_BYTES == revocations.MAX_REVOCATIONS_BYTES


def test_the_document_names_every_kind_and_every_limit() -> None:
    document = (Path(hopformer.__file__).parent / "docs" / "wire-format.md").read_text(encoding="utf-8")
    for kind, message in KINDS.items():
        assert f"| {kind} | {type(message).__name__} |" in document
    for name, value in vars(wire).items():
        if name.startswith("MAX_"):
            assert f"`{name}` | {value:,} |" in document
