"""Records between the two processes of a node."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopformer.errors import NetworkError, WireError
from hopformer.net import pipe
from hopformer.net.identity import PeerId
from hopformer.net.messages import Ask, Codec, Dtype, Goodbye, SessionKey, Step
from hopformer.net.pipe import (
    Dial,
    Down,
    Failed,
    HeardOf,
    Log,
    Publish,
    Ready,
    Record,
    RecordReader,
    Start,
    Stat,
    Stats,
    Stop,
    Unheard,
    Up,
)
from hopformer.net.wire import MAX_PAYLOAD_BYTES

PEER = PeerId(bytes(range(22)))
STEP = Step(SessionKey(PEER, 1), 1, 0, 1, 1, False, Dtype.FLOAT32, Codec.EXACT, 3, bytes(12))
RECORDS: list[Record] = [
    Start(bytes(32), ("127.0.0.1:0",), None, 8900, (), False, None, None, b""),
    Start(bytes(32), (), (PEER.digest,), 1200, ("r:1", f"{PEER}@r:2"), True, ("10.0.0.1",), PEER.digest, b"member"),
    Dial(PEER.digest, ("a:1", "b:2")),
    Stop(),
    Publish(b"signed"),
    Publish(None),
    Ready(("127.0.0.1:1",), ()),
    Ready((), (f"{PEER}@r:2",)),
    Failed("cannot listen"),
    Up(PEER.digest),
    Down(PEER.digest, "it was shut down"),
    HeardOf(b"signed", 2),
    Unheard(PEER.digest),
    Stats((Stat(PEER.digest, "a:1", 0.5, 1, 2, 3),)),
    Log(20, "hopformer.net.endpoint", "peer=x: connected"),
    (PEER, Ask()),
    (PEER, STEP),
]


def bytes_of(record: Record) -> bytes:
    return b"".join(pipe.pack_message(*record) if isinstance(record, tuple) else pipe.pack_order(record))


@given(st.lists(st.sampled_from(RECORDS), max_size=12), st.integers(1, 60))
def test_records_come_out_as_they_went_in_whatever_the_pieces(records: list[Record], length: int) -> None:
    stream, reader, received = b"".join(map(bytes_of, records)), RecordReader(), []
    for begin in range(0, len(stream), length):
        received += reader.feed(stream[begin : begin + length])
    assert received == records


def test_a_payload_is_not_copied_on_the_way_in_and_holds_no_more_than_itself_on_the_way_out() -> None:
    payload = bytearray(12)
    *_, view = pipe.pack_message(PEER, Step(STEP.session, 1, 0, 1, 1, False, Dtype.FLOAT32, Codec.EXACT, 3, payload))
    payload[0] = 7
    assert view[0] == 7
    stream = bytes_of((PEER, STEP)) * 100
    for record in RecordReader().feed(stream):
        assert isinstance(record, tuple) and isinstance(record[1], Step)
        assert len(record[1].payload.obj) < 200  # not all that came with it


def test_a_record_that_no_process_of_ours_writes_is_an_error() -> None:
    with pytest.raises(NetworkError, match="sent a record of"):
        list(RecordReader().feed(struct.pack(">IB", MAX_PAYLOAD_BYTES + 1000, 1)))
    with pytest.raises(WireError):
        list(RecordReader().feed(struct.pack(">IB", 30, 1) + bytes(29)))


def test_a_message_beyond_the_wire_is_refused_where_it_is_sent() -> None:
    with pytest.raises(WireError):
        pipe.pack_message(PEER, Goodbye(-1))


def test_a_seed_is_not_shown() -> None:
    assert "sss" not in repr(Start(b"s" * 32, ("127.0.0.1:0",), None, 1200, (), False, None, None, b""))
