"""A peer's address follows what is proven, the best way is taken, and datagrams grow as far as they get through."""

import heapq
import itertools
import math

import pytest

from hopformer.net import probes
from hopformer.net.identity import PeerId
from hopformer.net.path_size import ETHERNET_DATAGRAM_BYTES, SITE_DATAGRAM_BYTES
from hopformer.net.path_tries import MAX_REPUNCH_S, REPUNCH_S
from hopformer.net.paths import MAX_ASKED, STANDBY_S, Path
from hopformer.net.probes import PROBE_BYTES, challenge, is_challenge, is_probe, nonce_of, tag_of
from hopformer.net.quic import MIN_DATAGRAM_BYTES
from hopformer.net.ways import CHANNEL_PREFIX_BYTES, Direct, Ice, Relayed, channel_prefix
from hopformer.net.wire import Hello

OWN, PEERS = Hello(b"i" * 8, b"o" * 8, b"1" * 16), Hello(b"j" * 8, b"p" * 8, b"2" * 16)
SITE, WORLD, THIRD = (Direct(0, addr) for addr in (("127.0.0.1", 4711), ("8.8.8.8", 4711), ("127.0.0.2", 9)))
CHANNEL, OTHER = (
    Relayed(PeerId(bytes([number] * 20)), ("127.0.0.1", number), channel_prefix(bytes([number] * 7), is_asker=True))
    for number in (1, 2)
)


def nonces() -> itertools.count:
    return itertools.count(1)


def path_to(addr: tuple, own: Hello = OWN, peers: Hello = PEERS, **begin: float) -> tuple[Path, list]:
    numbers = nonces()
    path = Path(addr, lambda num_bytes: next(numbers).to_bytes(num_bytes, "big"))
    path.rtt_s = begin.get("rtt_s", 0.001)
    return path, path.begin(own, peers, 100.0)


def answer(outgoing: list, now: float = 100.1, seen_at: tuple = SITE) -> list:
    """What a peer, that sees us at ``seen_at``, sends back."""
    peer, _ = path_to(seen_at, PEERS, OWN)
    return [reply for datagram, _ in outgoing for reply in peer.take(datagram, seen_at, now)]


def taken(path: Path, replies: list, addr: tuple, now: float = 100.2) -> list:
    return [one for datagram, _ in replies for one in path.take(datagram, addr, now)]


def test_datagrams_grow_when_a_padded_probe_was_answered() -> None:
    path, outgoing = path_to(SITE)
    assert [(len(datagram), addr) for datagram, addr in outgoing] == [(SITE_DATAGRAM_BYTES, SITE)]
    assert path.datagram_bytes == MIN_DATAGRAM_BYTES
    replies = answer(outgoing)
    assert [(len(datagram), addr) for datagram, addr in replies] == [(PROBE_BYTES, SITE)]
    assert taken(path, replies, SITE) == [] and path.datagram_bytes == SITE_DATAGRAM_BYTES


@pytest.mark.parametrize(
    ("addr", "rtt_s", "size"),
    [
        (("127.0.0.1", 1), 0.5, SITE_DATAGRAM_BYTES),
        (("::1", 1, 0, 0), 0.5, SITE_DATAGRAM_BYTES),
        (("192.168.1.7", 1), 0.001, SITE_DATAGRAM_BYTES),
        (("::ffff:192.168.1.7", 1, 0, 0), 0.001, SITE_DATAGRAM_BYTES),
        (("fe80::1%eth0", 1, 0, 2), 0.001, SITE_DATAGRAM_BYTES),
        (("192.168.1.7", 1), 0.02, ETHERNET_DATAGRAM_BYTES),
        (("8.8.8.8", 1), 0.001, ETHERNET_DATAGRAM_BYTES),
        (("2001:4860::1", 1, 0, 0), 0.001, ETHERNET_DATAGRAM_BYTES),
    ],
)
def test_large_datagrams_are_tried_within_a_site_only(addr: tuple, rtt_s: float, size: int) -> None:
    _, ((datagram, _),) = path_to(Direct(0, addr), rtt_s=rtt_s)
    assert len(datagram) == size


def test_a_size_that_does_not_get_through_is_given_up_for_a_smaller_one() -> None:
    path, sent = path_to(SITE)
    while (now := path.next_deadline()) < 200:
        sent += path.handle_deadline(now)
    sizes = [len(datagram) for datagram, _ in sent]
    assert sizes == [SITE_DATAGRAM_BYTES] * 3 + [ETHERNET_DATAGRAM_BYTES] * 3
    assert path.datagram_bytes == MIN_DATAGRAM_BYTES and path.next_deadline() == float("inf")


def test_a_size_that_ceases_to_get_through_is_noticed() -> None:
    path, outgoing = path_to(SITE)
    taken(path, answer(outgoing), SITE)
    now = path.next_deadline()
    assert now == pytest.approx(110.2) and path.handle_deadline(now - 0.01) == []
    ((datagram, _),) = path.handle_deadline(now)
    assert len(datagram) == SITE_DATAGRAM_BYTES
    while len(datagram) == SITE_DATAGRAM_BYTES:
        ((datagram, _),) = path.handle_deadline(path.next_deadline())
    assert path.datagram_bytes == MIN_DATAGRAM_BYTES and len(datagram) == ETHERNET_DATAGRAM_BYTES


def test_a_new_address_is_taken_once_the_peer_answers_there() -> None:
    path, outgoing = path_to(SITE)
    taken(path, answer(outgoing), SITE)
    challenges = path.heard_from(THIRD, 101.0)
    assert [(len(datagram), addr) for datagram, addr in challenges] == [(PROBE_BYTES, THIRD)]
    assert path.way == SITE
    more = taken(path, answer(challenges), THIRD)
    assert path.way == THIRD and path.datagram_bytes == MIN_DATAGRAM_BYTES
    assert [(len(datagram), addr) for datagram, addr in more] == [(SITE_DATAGRAM_BYTES, THIRD)]


def test_an_address_that_never_answers_gets_three_small_datagrams() -> None:
    path, outgoing = path_to(SITE)
    taken(path, answer(outgoing), SITE)
    sent = path.heard_from(THIRD, 101.0)
    for _ in range(100):
        sent += path.heard_from(THIRD, 101.1)
    while (now := path.next_deadline()) < 110:
        sent += path.handle_deadline(now)
    assert [len(datagram) for datagram, addr in sent if addr == THIRD] == [PROBE_BYTES] * 3
    assert path.way == SITE and path.datagram_bytes == SITE_DATAGRAM_BYTES


def test_before_the_keys_are_known_nothing_is_asked_and_nothing_answered() -> None:
    path = Path(SITE, bytes)
    _, outgoing = path_to(SITE)
    assert path.heard_from(THIRD, 1.0) == [] and path.take(outgoing[0][0], SITE, 1.0) == []


def test_a_probe_with_another_key_or_a_changed_byte_is_not_answered() -> None:
    _, ((datagram, _),) = path_to(SITE)
    stranger, _ = path_to(SITE, own=Hello(PEERS.instance, PEERS.path_tag, b"3" * 16), peers=OWN)
    assert stranger.take(datagram, SITE, 1.0) == []
    peer, _ = path_to(SITE, PEERS, OWN)
    for offset in range(PROBE_BYTES):
        changed = bytearray(datagram)
        changed[offset] ^= 1
        assert peer.take(bytes(changed), SITE, 1.0) == []
    assert peer.take(datagram, SITE, 1.0) != []


def test_an_answer_to_another_question_moves_nothing() -> None:
    path, outgoing = path_to(SITE)
    replies = answer(outgoing)
    taken(path, replies, SITE)
    challenges = path.heard_from(THIRD, 101.0)
    assert taken(path, replies, THIRD) == [] and path.way == SITE  # the first one, said again
    taken(path, answer(challenges), THIRD)
    assert path.way == THIRD


def test_probes_are_told_from_quic_by_their_first_byte() -> None:
    _, ((datagram, _),) = path_to(SITE)
    assert is_probe(datagram) and tag_of(datagram) == PEERS.path_tag and not datagram[0] & 0x40
    assert not is_probe(datagram[: PROBE_BYTES - 1]) and not is_probe(bytes(100)) and not is_probe(b"\x41" * 100)
    assert PROBE_BYTES == 33


def test_a_way_that_ice_has_found_is_straight_and_takes_nobodys_place() -> None:
    channel = Relayed(PeerId(bytes(22)), ("198.51.100.2", 4711), b"\4" + bytes(7))
    by_ice = Ice(("198.51.100.7", 4711), 0)
    path, _ = path_to(channel)
    outgoing = path.offer([by_ice], 100.0)
    taken(path, answer([one for one in outgoing if one[1] == by_ice], seen_at=by_ice), by_ice)
    assert path.way == by_ice and set(path.ways) == {by_ice, channel}
    path, _ = path_to(WORLD)
    outgoing = path.heard_from(by_ice, 100.0)  # an authentic packet, before this end knows the way
    taken(path, answer([one for one in outgoing if one[1] == by_ice], seen_at=by_ice), by_ice)
    assert path.way == WORLD and set(path.ways) == {WORLD, by_ice}  # a peer that has moved would have taken its place
    path.lose(by_ice, 101.0)
    assert path.ways == [WORLD]
    path.check_integrity()


# ---- several ways


class Ends:
    """A path, and a peer that answers on the ways that are open, on a clock of their own."""

    def __init__(self, way: tuple = CHANNEL) -> None:
        numbers = nonces()
        self.path = Path(way, lambda num_bytes: next(numbers).to_bytes(num_bytes, "big"))
        self.path.is_busy = True
        self.delay_s = {way: 0.010}
        self.asked: list[tuple[float, tuple]] = []
        self.now = 100.0
        self._coming: list[tuple[float, int, bytes, tuple]] = []
        self.deliver(self.path.begin(OWN, PEERS, self.now))
        self.go_on(0.1)

    def deliver(self, outgoing: list) -> None:
        for datagram, way in outgoing:
            if is_challenge(datagram):
                self.asked.append((self.now, way))
                if way in self.delay_s:
                    reply = probes.answer(OWN, nonce_of(datagram))
                    heapq.heappush(self._coming, (self.now + self.delay_s[way], len(self.asked), reply, way))
        self.path.check_integrity()

    def go_on(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            due = self.path.next_deadline()
            arrival = self._coming[0][0] if self._coming else math.inf
            if min(due, arrival) > until:
                break
            self.now = min(due, arrival)
            if arrival <= due:
                _, _, reply, way = heapq.heappop(self._coming)
                self.deliver(self.path.take(reply, way, self.now))
            else:
                self.deliver(self.path.handle_deadline(self.now))
                assert self.path.next_deadline() > self.now, "it would be called in a circle"
        self.now = until

    def offer(self, *ways: tuple) -> None:
        self.deliver(self.path.offer(ways, self.now))
        self.go_on(1.0)

    def open(self, way: tuple, delay_s: float = 0.010) -> None:
        self.delay_s[way] = delay_s

    def shut(self, *ways: tuple) -> None:
        for way in ways:
            self.delay_s.pop(way)


def test_a_straight_way_that_answers_is_taken_in_place_of_a_relay_however_slow_it_is() -> None:
    ends = Ends()
    ends.open(WORLD, 0.200)
    ends.offer(WORLD)
    assert ends.path.way == WORLD and ends.path.ways == [WORLD, CHANNEL]
    assert ends.path.datagram_bytes == ETHERNET_DATAGRAM_BYTES


def test_a_way_that_does_not_answer_is_not_taken() -> None:
    ends = Ends()
    ends.offer(WORLD, THIRD)
    ends.go_on(60.0)
    assert ends.path.way == CHANNEL and ends.path.ways == [CHANNEL]


def test_a_faster_way_of_the_same_kind_is_taken_and_one_that_is_hardly_faster_is_not() -> None:
    ends = Ends()
    ends.open(OTHER, 0.0055)
    ends.offer(OTHER)
    ends.go_on(20.0)
    assert ends.path.way == CHANNEL
    ends.open(OTHER, 0.001)
    ends.go_on(60.0)
    assert ends.path.way == OTHER
    ends.open(CHANNEL, 0.0005)
    ends.go_on(60.0)
    assert ends.path.way == OTHER, "they do not take turns"


def test_a_straight_way_that_dies_is_left_within_a_second_and_a_half_and_taken_again_when_it_is_back() -> None:
    ends = Ends()
    ends.open(WORLD)
    ends.offer(WORLD)
    ends.go_on(30.0)
    ends.shut(WORLD)
    ends.go_on(1.6)
    assert ends.path.way == CHANNEL and not ends.path.is_stranded
    ends.go_on(10.0)
    assert ends.path.way == CHANNEL
    ends.open(WORLD)
    ends.go_on(6.0)
    assert ends.path.way == WORLD


def test_a_straight_way_with_a_long_round_trip_is_given_the_time() -> None:
    ends = Ends()
    ends.open(WORLD, 0.6)
    ends.offer(WORLD)
    ends.go_on(30.0)
    ends.shut(WORLD)
    ends.go_on(2.2)  # answers are under way for the first 0.6 of them
    assert ends.path.way == WORLD
    ends.go_on(0.8)
    assert ends.path.way == CHANNEL


def test_while_nobody_waits_a_way_is_asked_rarely() -> None:
    ends = Ends()
    ends.open(WORLD)
    ends.offer(WORLD)
    ends.path.is_busy = False
    ends.go_on(2.0)
    ends.asked.clear()
    ends.go_on(60.0)
    assert len(ends.asked) <= 2 * (60 / STANDBY_S + 1) + 60 / 10 + 1  # two ways, and the size that is looked at again


def test_a_way_that_comes_and_goes_is_taken_ever_more_rarely_until_it_holds() -> None:
    ends = Ends()
    ends.offer(WORLD)
    moves = []
    for _ in range(6):
        ends.open(WORLD)
        began = ends.now
        while ends.path.way != WORLD:
            ends.go_on(0.1)
        moves.append(ends.now - began)
        ends.shut(WORLD)
        ends.go_on(2.0)
        assert ends.path.way == CHANNEL
    assert max(moves[-2:]) > 10.0 and max(moves) < MAX_REPUNCH_S + 1.0
    ends.open(WORLD)
    ends.go_on(60.0)
    assert ends.path.way == WORLD
    ends.shut(WORLD)
    ends.go_on(2.0)
    ends.open(WORLD)
    ends.go_on(REPUNCH_S + 1.0)
    assert ends.path.way == WORLD


def test_a_path_whose_relay_is_gone_is_stranded_and_takes_the_next_channel() -> None:
    ends = Ends()
    ends.deliver(ends.path.lose(CHANNEL, ends.now, waits_for_relay=True))
    assert ends.path.is_stranded and ends.path.waits_for_relay and ends.path.ways == []
    ends.asked.clear()
    ends.go_on(30.0)
    assert ends.path.is_stranded and ends.asked == []
    ends.open(OTHER)
    ends.offer(OTHER)
    assert ends.path.way == OTHER and not ends.path.is_stranded and not ends.path.waits_for_relay
    assert ends.path.datagram_bytes > MIN_DATAGRAM_BYTES


def test_a_path_whose_peer_is_gone_from_the_relay_does_not_wait_for_it() -> None:
    ends = Ends()
    ends.deliver(ends.path.lose(CHANNEL, ends.now))
    assert ends.path.is_stranded and not ends.path.waits_for_relay


def test_a_channel_that_is_not_in_use_is_lost_without_a_word() -> None:
    ends = Ends()
    ends.open(WORLD)
    ends.offer(WORLD, OTHER)
    ends.deliver(ends.path.lose(CHANNEL, ends.now, waits_for_relay=True))
    ends.deliver(ends.path.lose(OTHER, ends.now, waits_for_relay=True))
    ends.go_on(1.0)
    assert ends.path.way == WORLD and not ends.path.waits_for_relay
    ends.asked.clear()
    ends.go_on(60.0)
    assert {way for _, way in ends.asked} == {WORLD}


def test_a_straight_way_that_was_refused_is_tried_again() -> None:
    """The peer's machine, or one on the way, said that no program listens there."""
    ends = Ends()
    ends.open(WORLD)
    ends.offer(WORLD)
    ends.deliver(ends.path.lose(WORLD, ends.now))
    assert ends.path.way == CHANNEL
    ends.go_on(REPUNCH_S + 1.0)
    assert ends.path.way == WORLD


def test_a_peer_that_asks_on_a_way_that_nobody_named_is_asked_there() -> None:
    ends = Ends()
    ends.open(WORLD)
    ends.deliver(ends.path.take(challenge(OWN, b"12345678"), WORLD, ends.now))
    ends.go_on(0.1)
    assert ends.path.way == WORLD


def test_a_peer_that_is_reached_straight_alone_is_answered_and_not_asked_elsewhere() -> None:
    path, outgoing = path_to(SITE)
    taken(path, answer(outgoing), SITE)
    (reply,) = path.take(challenge(OWN, b"12345678"), THIRD, 101.0)
    assert reply[1] == THIRD and not is_challenge(reply[0])


def test_a_straight_way_that_moves_takes_the_place_of_the_old_one() -> None:
    ends = Ends()
    ends.open(WORLD)
    ends.offer(WORLD)
    ends.open(THIRD)
    ends.shut(WORLD)
    ends.deliver(ends.path.heard_from(THIRD, ends.now))
    ends.go_on(0.1)
    assert ends.path.ways == [THIRD, CHANNEL]


def test_a_channel_that_a_packet_came_on_is_no_reason_to_leave_a_straight_way() -> None:
    """The peer may have left it already; each end chooses for itself."""
    ends = Ends()
    ends.open(WORLD)
    ends.open(OTHER, 0.001)
    ends.offer(WORLD)
    ends.deliver(ends.path.heard_from(OTHER, ends.now))
    ends.go_on(1.0)
    assert ends.path.way == WORLD and OTHER in ends.path.ways


def test_challenges_that_are_not_answered_are_forgotten() -> None:
    ends = Ends()
    ends.offer(*(Direct(0, ("192.0.2.1", port)) for port in range(1, 39)))
    ends.go_on(100.0)
    assert len(ends.path._asked) <= MAX_ASKED
    ends.path.check_integrity()


@pytest.mark.parametrize(("way", "size"), [("127.0.0.1", SITE_DATAGRAM_BYTES), ("8.8.8.8", ETHERNET_DATAGRAM_BYTES)])
def test_a_channel_takes_its_own_bytes_off_the_size(way: str, size: int) -> None:
    relayed = CHANNEL._replace(addr=(way, 4711))
    ends = Ends(relayed)
    ends.go_on(0.1)
    assert ends.path.datagram_bytes == size - CHANNEL_PREFIX_BYTES
