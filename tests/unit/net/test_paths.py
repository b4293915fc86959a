"""A peer's address follows what is proven, and datagrams grow as far as they get through."""

import itertools

import pytest

from hopformer.net.identity import PeerId
from hopformer.net.path_size import ETHERNET_DATAGRAM_BYTES, SITE_DATAGRAM_BYTES
from hopformer.net.paths import Path
from hopformer.net.probes import PROBE_BYTES, is_probe, tag_of
from hopformer.net.quic import MIN_DATAGRAM_BYTES
from hopformer.net.ways import Direct, Ice, Relayed
from hopformer.net.wire import Hello

OWN, PEERS = Hello(b"i" * 8, b"o" * 8, b"1" * 16), Hello(b"j" * 8, b"p" * 8, b"2" * 16)
SITE, WORLD, THIRD = (Direct(0, addr) for addr in (("127.0.0.1", 4711), ("8.8.8.8", 4711), ("127.0.0.2", 9)))


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
