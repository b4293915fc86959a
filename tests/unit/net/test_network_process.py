"""The two ends of a node's socket pair, each without the other: what is said together crosses together."""

import asyncio
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from hopformer.net.identity import Identity, PeerId
from hopformer.net.messages import Ask, Codec, Done, Dtype, Message, SessionKey, Step
from hopformer.net.network_child import NetworkProcess
from hopformer.net.network_process import ProcessSwitchboard
from hopformer.net.pipe import Record, RecordReader, Up, pack_message, pack_order
from hopformer.net.switchboard import PeerUp, Received

PEER = Identity.generate().peer_id
KEY = SessionKey(PEER, 1)


def step(number: int, num_tokens: int = 1) -> Step:
    rows = bytes(2 * 4096 * num_tokens)
    return Step(KEY, number, 0, num_tokens, num_tokens, False, Dtype.BFLOAT16, Codec.EXACT, 4096, rows)


def records_of(data: bytes) -> list[Record]:
    return list(RecordReader().feed(data))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def switchboard_at(end: socket.socket) -> ProcessSwitchboard:
    child = subprocess.Popen(["true"])
    child.wait()
    return ProcessSwitchboard(PEER, end, child)


def test_messages_sent_together_cross_in_one_write(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    messages: list[tuple[PeerId, Message]] = [(PEER, step(1)), (PEER, Done(KEY, 1, 2, 3, 1))]
    switchboard_at(ours).send_all(messages)
    theirs.setblocking(False)
    data = theirs.recv(1 << 20)
    assert records_of(data) == messages
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_more_than_the_kernel_takes_at_once_crosses_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    messages: list[tuple[PeerId, Message]] = [(PEER, Ask())] * 2000 + [(PEER, step(1, num_tokens=1000))] * 2
    expected = sum(len(part) for one in messages for part in pack_message(*one))
    received = bytearray()

    def read() -> None:
        while len(received) < expected:
            received.extend(theirs.recv(1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    switchboard_at(ours).send_all(messages)
    reader.join(20)
    assert records_of(bytes(received)) == messages


def test_what_has_arrived_is_polled_in_order_and_an_empty_pipe_is_waited_for(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    switchboard = switchboard_at(ours)
    assert switchboard.poll(0.01) == []
    theirs.sendmsg([*pack_order(Up(PEER.digest)), *pack_message(PEER, step(1)), *pack_message(PEER, Ask())])
    assert switchboard.poll(1.0) == [PeerUp(PEER), Received(PEER, step(1)), Received(PEER, Ask())]
    assert switchboard.poll(0.0) == []


def test_what_is_told_in_one_turn_of_the_loop_crosses_in_one_write(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.setblocking(False)
    told = [Received(PEER, step(1)), Received(PEER, Done(KEY, 1, 2, 3, 1))]

    async def tell() -> bytes:
        process = NetworkProcess(ours)
        process._tell(PeerUp(PEER))
        for event in told:
            process._tell(event)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)  # not yet
        await asyncio.sleep(0)
        return theirs.recv(1 << 20)

    data = asyncio.run(tell())
    assert records_of(data) == [Up(PEER.digest), *((event.peer, event.message) for event in told)]


def test_what_the_pipe_does_not_take_is_written_when_it_does(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.setblocking(False)
    expected = sum(map(len, pack_message(PEER, step(1, num_tokens=1000))))

    async def tell() -> int:
        process = NetworkProcess(ours)
        process._tell(Received(PEER, step(1, num_tokens=1000)))
        received = 0
        while received < expected:
            await asyncio.sleep(0)
            try:
                received += len(theirs.recv(1 << 16))
            except BlockingIOError:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert process._unwritten_bytes == 0 and not process._unwritten
        return received

    assert asyncio.run(asyncio.wait_for(tell(), 20)) == expected
