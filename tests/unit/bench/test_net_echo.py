"""The far end of a hop that `bench net` measures: the frames of those that are not ours."""

from hopformer.bench.net_echo import BULK, CONFIRMED, ECHO, FrameBuffer, frame, parse, reply


def test_the_baselines_frames_survive_any_pieces() -> None:
    stream = frame(ECHO, b"abc") + frame(BULK, b"") + frame(ECHO, b"d" * 1000)
    buffer, frames = FrameBuffer(), []
    for index in range(0, len(stream), 7):
        frames += buffer.feed(stream[index : index + 7])
    assert frames == [(ECHO, b"abc"), (BULK, b""), (ECHO, b"d" * 1000)]
    assert reply(ECHO, b"abc") == frame(ECHO, b"abc") and reply(BULK, b"abc") == frame(BULK, CONFIRMED)


def test_a_server_without_a_key_says_so() -> None:
    assert parse('{"peer": "", "addr": "127.0.0.1:1"}') == (None, "127.0.0.1:1")
