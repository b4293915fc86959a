"""The directory: the newest announcement of each peer, for as long as it is good, and never more than there is room."""

from dataclasses import replace

import pytest

from hopformer.errors import NetworkError, WireError
from hopformer.net.announcement import MAX_SKEW_S, MAX_VALID_S, Announcement
from hopformer.net.directory import MAX_BURST, MIN_INTERVAL_S, Directory, Via
from hopformer.net.identity import Identity, PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.messages import Dtype

START = 1_800_000_000.0  # the time of day at 0 on the directory's clock
ANNA, BELA, CARL = (Identity.from_seed(bytes([index]) * 32) for index in range(3))
FINGERPRINT = bytes(8) + b"\x77" * 24


def says(who: Identity, at: float = 0.0, valid_s: int = 60, **changes: object) -> bytes:
    """What ``who`` announces ``at`` so many seconds."""
    one = Announcement(
        who.public_bytes,
        int((START + at) * 1000),
        valid_s,
        "demo",
        FINGERPRINT,
        8,
        LayerRange(0, 4),
        True,
        Dtype.FLOAT32,
    )
    return replace(one, **changes).sign(who)  # type: ignore[arg-type]


class Listener:
    """A directory and a clock."""

    def __init__(self, **arguments: object) -> None:
        self.directory = Directory(**arguments)  # type: ignore[arg-type]
        self.now = 0.0

    def hear(self, blob: bytes, via: Via = Via.RELAY) -> Announcement | None:
        found = self.directory.put(blob, self.now, START + self.now, via)
        self.directory.check_integrity()
        return found

    def at(self, now: float) -> list[PeerId]:
        self.now = now
        dropped = self.directory.expire(now)
        self.directory.check_integrity()
        return dropped

    def gone(self, who: Identity, via: Via | None = None) -> bool:
        is_gone = self.directory.gone(who.peer_id, via)
        self.directory.check_integrity()
        return is_gone

    @property
    def listed(self) -> set[PeerId]:
        return {one.announcement.peer for one in self.directory.entries()}


@pytest.fixture
def anna() -> Listener:
    """Who has heard Anna."""
    listener = Listener()
    assert listener.hear(says(ANNA)) is not None
    return listener


def test_an_announcement_is_listed_until_it_expires(anna: Listener) -> None:
    (entry,) = anna.directory.entries()
    assert entry.announcement.layers == LayerRange(0, 4) and entry.blob == says(ANNA)
    assert (entry.heard_at, entry.expires_at, entry.via) == (0.0, 60.0, Via.RELAY)
    assert anna.directory.entry(ANNA.peer_id) == entry and anna.directory.entry(BELA.peer_id) is None
    assert anna.directory.next_deadline() == 60.0
    assert anna.at(59.999) == [] and anna.listed == {ANNA.peer_id}
    assert anna.at(60.0) == [ANNA.peer_id] and anna.listed == set() and anna.at(60.0) == []


def test_a_newer_one_takes_its_place_and_lasts_longer(anna: Listener) -> None:
    anna.at(40.0)
    newer = anna.hear(says(ANNA, 40.0, layers=LayerRange(4, 8)))
    assert newer is not None and newer.layers == LayerRange(4, 8)
    assert anna.at(60.0) == [] and [one.announcement for one in anna.directory.entries()] == [newer]
    assert anna.at(100.0) == [ANNA.peer_id]


@pytest.mark.parametrize("issued_at", [-30.0, -0.001, 0.0])
def test_one_that_is_not_newer_changes_nothing(anna: Listener, issued_at: float) -> None:
    before = anna.directory.entries()
    assert anna.hear(says(ANNA, issued_at, layers=LayerRange(4, 8))) is None and anna.directory.entries() == before


def test_each_peer_has_its_own(anna: Listener) -> None:
    assert anna.hear(says(BELA)) is not None and anna.listed == {ANNA.peer_id, BELA.peer_id}
    assert anna.gone(ANNA) and anna.listed == {BELA.peer_id} and not anna.gone(ANNA) and not anna.gone(CARL)


def test_what_is_no_good_announcement_is_refused_and_changes_nothing(anna: Listener) -> None:
    before = anna.directory.entries()
    forged = says(ANNA, 1.0)[:-1] + b"\0"
    for bad in (forged, b"", b"\2" + says(ANNA, 1.0)[1:], says(ANNA, MAX_SKEW_S + 1)):
        with pytest.raises(WireError):
            anna.hear(bad)
    assert anna.directory.entries() == before


def test_a_peer_that_is_gone_comes_back_with_a_newer_one_only(anna: Listener) -> None:
    assert anna.gone(ANNA) and anna.directory.entry(ANNA.peer_id) is None
    anna.at(1.0)
    assert anna.hear(says(ANNA)) is None and anna.hear(says(ANNA), Via.LAN) is None and anna.listed == set()
    assert anna.hear(says(ANNA, 1.0)) is not None and anna.listed == {ANNA.peer_id}


def test_an_older_one_that_would_still_be_good_is_not_taken_when_a_newer_one_has_expired() -> None:
    listener = Listener()
    listener.hear(says(ANNA, 0.0, valid_s=5))
    assert listener.at(5.0) == [ANNA.peer_id]
    last_good = MAX_VALID_S + MAX_SKEW_S - 0.002
    for now in (5.0, last_good):
        listener.at(now)
        assert listener.hear(says(ANNA, -0.001, valid_s=MAX_VALID_S)) is None and listener.listed == set()
    assert listener.directory.next_deadline() == MAX_VALID_S + MAX_SKEW_S
    listener.at(MAX_VALID_S + MAX_SKEW_S)
    assert listener.directory.next_deadline() is None
    with pytest.raises(WireError, match="is 180 s old"):
        listener.hear(says(ANNA, -0.001, valid_s=MAX_VALID_S))


# ---- ways


def test_the_ways_on_which_it_came_add_up(anna: Listener) -> None:
    assert anna.hear(says(ANNA), Via.LAN) is None
    assert anna.directory.entries()[0].via == Via.LAN | Via.RELAY
    assert not anna.gone(ANNA, Via.LAN) and anna.directory.entries()[0].via == Via.RELAY
    assert not anna.gone(ANNA, Via.LAN) and anna.gone(ANNA, Via.RELAY) and anna.listed == set()


def test_a_way_that_is_silent_is_listed_for_as_long_as_what_came_on_it_was_good(anna: Listener) -> None:
    anna.at(40.0)
    anna.hear(says(ANNA, 40.0), Via.LAN)
    assert anna.directory.entries()[0].via == Via.LAN | Via.RELAY
    assert anna.at(60.0) == [] and anna.directory.entries()[0].via == Via.LAN


def test_no_way_outlasts_what_a_peer_said_last(anna: Listener) -> None:
    anna.at(1.0)
    anna.hear(says(ANNA, 1.0, valid_s=2), Via.LAN)
    assert anna.at(3.0) == [ANNA.peer_id]


def test_a_peer_that_is_left_on_one_way_only_expires_as_what_came_on_that_one_does(anna: Listener) -> None:
    anna.at(40.0)
    anna.hear(says(ANNA, 40.0), Via.LAN)
    assert not anna.gone(ANNA, Via.LAN) and anna.directory.next_deadline() == 60.0
    assert anna.at(60.0) == [ANNA.peer_id]


def test_another_way_is_believed_only_with_the_right_signature(anna: Listener) -> None:
    with pytest.raises(WireError, match="forged"):
        anna.hear(says(ANNA)[:-1] + b"\0", Via.LAN)
    assert anna.directory.entries()[0].via == Via.RELAY


# ---- limits


def test_a_peer_may_change_a_few_times_at_once_and_then_each_second(anna: Listener) -> None:
    for number in range(1, MAX_BURST):
        assert anna.hear(says(ANNA, number / 1000)) is not None
    assert anna.hear(says(ANNA, 0.5)) is None
    anna.at(MIN_INTERVAL_S - 0.001)
    assert anna.hear(says(ANNA, 0.6)) is None
    anna.at(MIN_INTERVAL_S)
    assert anna.hear(says(ANNA, 0.6)) is not None and anna.hear(says(ANNA, 0.7)) is None
    assert anna.hear(says(BELA)) is not None


def test_a_directory_that_is_full_takes_no_more_but_what_it_knows_goes_on() -> None:
    listener = Listener(max_entries=2)
    listener.hear(says(ANNA)), listener.hear(says(BELA, valid_s=20))
    with pytest.raises(NetworkError, match="2 peers are announced already; no more are taken"):
        listener.hear(says(CARL))
    listener.at(1.0)
    assert listener.hear(says(ANNA, 1.0)) is not None
    assert listener.at(20.0) == [BELA.peer_id]
    assert listener.hear(says(CARL, 20.0)) is not None and listener.listed == {ANNA.peer_id, CARL.peer_id}


def test_of_those_who_are_only_remembered_the_one_that_is_soonest_forgotten_makes_room() -> None:
    listener = Listener(max_entries=2)
    listener.hear(says(ANNA)), listener.hear(says(BELA, -10.0))
    listener.gone(ANNA), listener.gone(BELA)
    listener.hear(says(CARL))
    assert listener.hear(says(ANNA)) is None and listener.hear(says(BELA, -10.0)) is not None


def test_whom_the_mesh_does_not_admit_is_not_listed() -> None:
    def admit(one: Announcement) -> None:
        if one.membership != b"proof":
            raise NetworkError(f"{one.peer} is not of this network")

    listener = Listener(admit=admit)
    with pytest.raises(NetworkError, match="is not of this network"):
        listener.hear(says(ANNA))
    assert listener.hear(says(BELA, membership=b"proof")) is not None and listener.listed == {BELA.peer_id}


# ---- models


def test_those_who_have_layers_of_a_model_are_found_by_its_fingerprint() -> None:
    other_weights, other_config = bytes(8) + b"\x66" * 24, b"\1" * 8 + b"\x77" * 24
    listener = Listener()
    listener.hear(says(ANNA))
    listener.hear(says(BELA, layers=None, is_ready=False, fingerprint=other_weights))
    listener.hear(says(CARL, layers=LayerRange(4, 8), fingerprint=other_weights))
    found = {one.announcement.peer for one in listener.directory.matching(FINGERPRINT, 8)}
    assert found == {ANNA.peer_id, BELA.peer_id}  # Bela has no layers yet that could be others
    assert listener.directory.matching(other_config, 8) == [] == listener.directory.matching(FINGERPRINT, 9)
