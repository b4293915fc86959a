"""Ways are asked often at first and seldom later on, and however many a peer names, few datagrams go there."""

import itertools
import math

from hopformer.net.path_tries import (
    MAX_PROBES,
    MAX_REPUNCH_S,
    MAX_WAYS,
    PUNCH_EVERY_S,
    PUNCH_S,
    REPUNCH_S,
    TRIES_PER_S,
    Tries,
)
from hopformer.net.ways import Direct

WAYS = [Direct(0, (f"192.0.2.{number % 200}", 4711 + number)) for number in range(1000)]
WAY = WAYS[0]


def times(tries: Tries, until: float, way: Direct = WAY) -> list[float]:
    """When ``way`` is asked."""
    found = []
    while (now := tries.next_deadline()) < until:
        found += [now] * tries.due(now).count(way)
        assert tries.next_deadline() > now
    return found


def bursts(found: list[float]) -> list[list[float]]:
    parted: list[list[float]] = []
    for at in found:
        if parted and at - parted[-1][-1] < 1.0:
            parted[-1].append(at)
        else:
            parted.append([at])
    return parted


def test_a_way_that_is_offered_is_asked_many_times_and_then_a_few_times_ever_more_rarely() -> None:
    tries = Tries()
    tries.offer(WAY, 10.0, 1)
    first, *later = bursts(times(tries, 150.0))
    assert first[0] == 10.0 and len(first) in (20, 21)
    assert {len(one) for one in later} <= {4, 5}
    gaps = [round(after[0] - before[-1]) for before, after in zip([first, *later[:-1]], later, strict=True)]
    assert gaps[:3] == [5, 10, 20] and set(gaps[2:]) == {MAX_REPUNCH_S}


def test_a_way_that_has_worked_is_asked_as_often_as_at_first() -> None:
    tries = Tries()
    tries.died(WAY, 10.0, REPUNCH_S)
    found = bursts(times(tries, 60.0))
    assert found[0][0] == 10.0 + REPUNCH_S
    assert {round(after[0] - before[-1]) for before, after in itertools.pairwise(found)} == {REPUNCH_S}


def test_a_way_that_is_named_again_is_asked_anew_unless_that_is_being_done() -> None:
    tries = Tries()
    tries.offer(WAY, 10.0, 1)
    for number in range(10):
        tries.offer(WAY, 10.0 + number / 10, 1)
    assert len(times(tries, 14.0)) in (20, 21)
    tries.offer(WAY, 14.0, 1)
    assert len(times(tries, 18.0)) in (20, 21)


def test_a_way_that_the_peer_asks_on_is_asked_at_once() -> None:
    tries = Tries()
    tries.died(WAY, 10.0, MAX_REPUNCH_S)
    tries.challenged(WAY, 12.0, 1)
    assert len(times(tries, 13.0)) in (4, 5)
    assert tries.next_deadline() > 13.0


def test_a_peer_that_asks_on_a_way_in_a_flood_is_asked_at_the_usual_pace() -> None:
    tries = Tries()
    tries.offer(WAY, 10.0, 1)
    num_sent = 0
    for number in range(1000):
        now = 10.0 + number / 1000
        tries.challenged(WAY, now, 1)
        num_sent += len(tries.due(now))
    assert 9 <= num_sent <= 1 / PUNCH_EVERY_S + 1


def test_a_way_that_a_packet_came_on_is_asked_three_times_and_given_up() -> None:
    tries = Tries()
    tries.move_to(WAY, 10.0, 1)
    assert not tries.may_lead_there
    assert len(times(tries, 100.0)) == MAX_PROBES
    assert WAY not in tries and tries.next_deadline() == math.inf


def test_a_packet_on_a_way_that_waits_for_its_next_burst_has_it_asked_at_once() -> None:
    tries = Tries()
    tries.offer(WAY, 10.0, 1)
    times(tries, 10.0 + PUNCH_S + 1)
    tries.move_to(WAY, 14.0, 1)
    assert tries.due(14.0) == [WAY] and len(times(tries, 15.0)) == MAX_PROBES - 1


def test_only_the_last_way_that_a_packet_came_on_is_asked() -> None:
    tries = Tries()
    for way in WAYS[:5]:
        tries.move_to(way, 10.0, 1)
        tries.check_integrity()
    assert list(tries) == [WAYS[4]]


def test_no_more_ways_than_there_is_room_for_are_kept_and_the_newest_of_them() -> None:
    tries = Tries()
    tries.died(WAYS[900], 10.0, REPUNCH_S)
    for number, way in enumerate(WAYS[:100]):
        tries.offer(way, 10.0 + number / TRIES_PER_S, 3)
        assert len(tries) + 3 <= MAX_WAYS
        tries.check_integrity()
    assert WAYS[99] in tries and WAYS[0] not in tries and WAYS[900] in tries, "one that has worked is kept"


def test_ways_without_end_are_looked_at_slowly() -> None:
    tries, num_tried = Tries(), 0
    for way in WAYS:
        tries.offer(way, 10.0, 1)
        num_tried += way in tries
    assert num_tried == MAX_WAYS
    tries.offer(WAYS[500], 10.0 + 1.01 / TRIES_PER_S, 1)
    tries.offer(WAYS[501], 10.0 + 1.02 / TRIES_PER_S, 1)
    assert WAYS[500] in tries and WAYS[501] not in tries


def test_where_all_the_room_is_taken_by_ways_that_work_nothing_is_tried() -> None:
    tries = Tries()
    tries.offer(WAY, 10.0, MAX_WAYS)
    assert len(tries) == 0
