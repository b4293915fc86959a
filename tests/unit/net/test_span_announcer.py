"""What a node that serves a span says of itself, and when: at once, when it has changed, and not while it drains."""

import time

import pytest

from hopformer.net.announcement import Announcement, parse
from hopformer.net.hop_sessions import HopSessions
from hopformer.net.identity import Identity, PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.messages import Codec, Dtype, Neighbours, Open, SessionKey
from hopformer.net.served_span import ServedSpan
from hopformer.net.span_announcer import CHANGED_EVERY_S, SpanAnnouncer

SERVING, CALLER = Identity.from_seed(b"s" * 32), PeerId(b"c" * 22)
FINGERPRINT = bytes(8) + b"\x77" * 24
PAGES, PAGE_SIZE = 10, 16


def served(**changes: object) -> ServedSpan:
    usual = {
        "model": "demo",
        "fingerprint": FINGERPRINT,
        "start": 2,
        "end": 6,
        "num_layers": 8,
        "width": 32,
        "dtype": Dtype.FLOAT32,
        "codecs": (Codec.EXACT, Codec.INT8),
        "max_tokens": 64,
        "version": "1.2.3",
    }
    return ServedSpan(**(usual | changes))  # type: ignore[arg-type]


class Said:
    """What was published, as others read it."""

    def __init__(self) -> None:
        self.all: list[Announcement | None] = []

    def publish(self, announcement: bytes | None) -> None:
        self.all.append(None if announcement is None else parse(announcement, time.time()))


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def sessions() -> HopSessions:
    return HopSessions(served(), PAGES, PAGE_SIZE)


def open_session(sessions: HopSessions, now: float) -> None:
    sessions.peer_up(CALLER, now)
    neighbours = Neighbours(CALLER, CALLER, ())
    wanted = Open(SessionKey(CALLER, 1), FINGERPRINT, 2, 6, Dtype.FLOAT32, Codec.EXACT, 40, 60, neighbours)
    sessions.receive(CALLER, wanted, now)


def test_the_first_turn_says_what_is_served(said: Said, sessions: HopSessions) -> None:
    SpanAnnouncer(said, SERVING, served()).turn(sessions, 0.0)
    (one,) = said.all
    assert one is not None and one.peer == SERVING.peer_id
    assert (one.model, one.fingerprint, one.num_layers) == ("demo", FINGERPRINT, 8)
    assert (one.layers, one.is_ready, one.dtype) == (LayerRange(2, 6), True, Dtype.FLOAT32)
    assert (one.codecs, one.version) == ((Codec.EXACT, Codec.INT8), "1.2.3")
    assert (one.free_tokens, one.num_sessions, one.layer_us, one.queue_us) == (PAGES * PAGE_SIZE, 0, 0, 0)
    assert one.addrs == one.relays == () and one.network is None, "where it is, its network's process knows"


def test_what_has_not_changed_is_not_said_again(said: Said, sessions: HopSessions) -> None:
    announcer = SpanAnnouncer(said, SERVING, served())
    for second in range(100):
        announcer.turn(sessions, float(second))
    assert len(said.all) == 1


def test_what_changes_is_said_and_not_too_often(said: Said, sessions: HopSessions) -> None:
    announcer = SpanAnnouncer(said, SERVING, served())
    announcer.turn(sessions, 0.0)
    open_session(sessions, 0.1)
    announcer.turn(sessions, CHANGED_EVERY_S - 0.1)
    assert len(said.all) == 1
    announcer.turn(sessions, CHANGED_EVERY_S)
    assert len(said.all) == 2 and said.all[1] is not None
    assert said.all[1].num_sessions == 1 and said.all[1].issued_at >= said.all[0].issued_at


def test_who_drains_takes_it_back_once_and_says_nothing_more(said: Said, sessions: HopSessions) -> None:
    announcer = SpanAnnouncer(said, SERVING, served())
    announcer.turn(sessions, 0.0)
    sessions.drain(1.0, 2.0)
    for second in range(1, 20):
        announcer.turn(sessions, float(second))
    assert len(said.all) == 2 and said.all[1] is None


def test_who_drains_before_it_was_announced_has_nothing_to_take_back(said: Said, sessions: HopSessions) -> None:
    sessions.drain(0.0, 2.0)
    SpanAnnouncer(said, SERVING, served()).turn(sessions, 1.0)
    assert said.all == []


def test_a_model_whose_folder_has_an_odd_name_is_announced_all_the_same(said: Said, sessions: HopSessions) -> None:
    SpanAnnouncer(said, SERVING, served(model="my\u3000model\n\x1b[31m")).turn(sessions, 0.0)
    assert said.all[0] is not None and said.all[0].model == "my?model??[31m"


def test_a_measured_speed_stands_until_sessions_have_shown_another(said: Said, sessions: HopSessions) -> None:
    SpanAnnouncer(said, SERVING, served(), max_layers=6, layer_us=250).turn(sessions, 0.0)
    assert said.all[0] is not None and (said.all[0].layer_us, said.all[0].max_layers) == (250, 6)
