"""Who may be reached through a relay: offers, channels, their rates, and what a peer may ask for."""

import pytest

from hopformer.net.identity import PeerId
from hopformer.net.relay_messages import Channel, Leave, Limited, RelayMessage, Unreachable
from hopformer.net.relay_table import (
    ACCEPT_S,
    BURST_S,
    DEFAULT_RATE,
    MAX_CHANNELS,
    MAX_PEER_CHANNELS,
    MAX_REGISTERED,
    REACHES_PER_S,
    REPORT_S,
    RelayTable,
)

RATE = 100_000
BURST = int(RATE * BURST_S)


def peer(index: int) -> PeerId:
    return PeerId(index.to_bytes(22, "big"))


def name(index: int) -> bytes:
    return index.to_bytes(7, "big")


ANNA, BELA, CARA, STRANGER = map(peer, range(4))
ONE, TWO = name(1), name(2)


@pytest.fixture
def table() -> RelayTable:
    """Anna, Bela and Cara are registered."""
    table = RelayTable(RATE)
    for one in (ANNA, BELA, CARA):
        assert table.register(one)
    return table


def said(table: RelayTable) -> list[tuple[PeerId, RelayMessage]]:
    table.check_integrity()
    return table.take_outbox()


def opened(table: RelayTable, now: float = 0.0) -> RelayTable:
    """Anna's channel ONE to Bela is open."""
    table.reach(ANNA, BELA, ONE, now)
    table.accept(BELA, ONE)
    table.take_outbox()
    return table


def why_not(table: RelayTable, asker: PeerId, other: PeerId, now: float = 1.0) -> str:
    """What an asker is told instead of getting a channel."""
    table.reach(asker, other, name(1 << 40), now)
    ((told, message),) = said(table)
    assert told == asker and isinstance(message, Unreachable) and message.peer == other
    return message.text


# ---- offers


def test_the_other_end_is_asked_first_and_the_asker_told_once_it_accepts(table: RelayTable) -> None:
    table.reach(ANNA, BELA, ONE, 0.0)
    assert said(table) == [(BELA, Channel(ANNA, ONE, False))]
    assert table.ends(ONE, from_asker=True) is None, "nothing passes before"
    table.accept(BELA, ONE)
    assert said(table) == [(ANNA, Channel(BELA, ONE, True))]
    assert table.ends(ONE, from_asker=True) == (ANNA, BELA)
    assert table.ends(ONE, from_asker=False) == (BELA, ANNA)


def test_only_the_other_end_accepts_and_only_once(table: RelayTable) -> None:
    table.reach(ANNA, BELA, ONE, 0.0)
    table.take_outbox()
    for nosy in (ANNA, CARA, STRANGER):
        table.accept(nosy, ONE)
    table.accept(BELA, TWO)
    assert said(table) == [] and table.ends(ONE, from_asker=True) is None
    table.accept(BELA, ONE)
    table.accept(BELA, ONE)
    assert said(table) == [(ANNA, Channel(BELA, ONE, True))]


def test_an_offer_that_nobody_takes_ends_and_both_are_told(table: RelayTable) -> None:
    table.reach(ANNA, BELA, ONE, 10.0)
    table.take_outbox()
    table.handle_deadline(10.0 + ACCEPT_S - 0.01)
    assert said(table) == [] and table.num_channels == 1
    table.handle_deadline(10.0 + ACCEPT_S)
    assert said(table) == [
        (ANNA, Unreachable(BELA, "it does not answer the relay")),
        (BELA, Leave(ONE, "it was not taken in time")),
    ]
    assert table.num_channels == 0
    table.accept(BELA, ONE)
    assert said(table) == [], "too late"


def test_an_open_channel_has_no_deadline(table: RelayTable) -> None:
    opened(table)
    table.handle_deadline(1e6)
    assert said(table) == [] and table.ends(ONE, from_asker=True) is not None


def test_an_offer_may_be_declined(table: RelayTable) -> None:
    table.reach(ANNA, BELA, ONE, 0.0)
    table.take_outbox()
    table.leave(BELA, ONE, "there are too many")
    assert said(table) == [(ANNA, Unreachable(BELA, "there are too many"))]
    assert table.num_channels == 0


def test_who_has_lost_interest_takes_the_offer_back(table: RelayTable) -> None:
    table.reach(ANNA, BELA, ONE, 0.0)
    table.take_outbox()
    table.leave(ANNA, ONE, "it is not needed any more")
    assert said(table) == [(BELA, Leave(ONE, "it is not needed any more"))]


@pytest.mark.parametrize(
    ("asker", "other", "words"),
    [
        (STRANGER, ANNA, "register first"),
        (ANNA, STRANGER, "it is not connected with this relay"),
        (ANNA, ANNA, "this is you"),
    ],
)
def test_why_somebody_is_not_reached_is_told(table: RelayTable, asker: PeerId, other: PeerId, words: str) -> None:
    assert why_not(table, asker, other) == words
    assert table.num_channels == 0


# ---- ends of channels


@pytest.mark.parametrize(("leaver", "left"), [(ANNA, BELA), (BELA, ANNA)])
def test_either_end_closes_an_open_channel_and_the_other_is_told(
    table: RelayTable, leaver: PeerId, left: PeerId
) -> None:
    opened(table)
    table.leave(leaver, ONE, "goodbye")
    assert said(table) == [(left, Leave(ONE, "goodbye"))]
    assert table.ends(ONE, from_asker=True) is None and table.num_channels == 0


def test_nobody_else_closes_a_channel(table: RelayTable) -> None:
    opened(table)
    for nosy in (CARA, STRANGER):
        table.leave(nosy, ONE, "goodbye")
    table.leave(ANNA, TWO, "goodbye")
    assert said(table) == [] and table.num_channels == 1


@pytest.mark.parametrize(("goer", "left"), [(ANNA, BELA), (BELA, ANNA)])
def test_with_a_peer_its_channels_go(table: RelayTable, goer: PeerId, left: PeerId) -> None:
    opened(table)
    table.gone(goer)
    assert said(table) == [(left, Leave(ONE, "the other end is not connected with the relay any more"))]
    assert (table.num_channels, table.num_registered) == (0, 2)
    table.gone(goer)
    assert said(table) == []


def test_when_the_other_end_goes_before_it_accepts_the_asker_hears_that_it_is_not_reached(table: RelayTable) -> None:
    """The asker does not know the channel by its name yet."""
    table.reach(ANNA, BELA, ONE, 0.0)
    table.take_outbox()
    table.gone(BELA)
    assert said(table) == [(ANNA, Unreachable(BELA, "the other end is not connected with the relay any more"))]


def test_who_asks_again_has_lost_its_channel_so_another_takes_its_place(table: RelayTable) -> None:
    opened(table)
    table.reach(ANNA, BELA, TWO, 1.0)
    assert said(table) == [(BELA, Leave(ONE, "another one takes its place")), (BELA, Channel(ANNA, TWO, False))]
    assert table.num_channels == 1


def test_each_end_may_ask_for_a_channel_of_its_own(table: RelayTable) -> None:
    opened(table)
    table.reach(BELA, ANNA, TWO, 1.0)
    assert said(table) == [(ANNA, Channel(BELA, TWO, False))]
    assert table.num_channels == 2


# ---- limits


def test_a_peer_asks_for_so_many_a_second_and_no_more(table: RelayTable) -> None:
    for index in range(REACHES_PER_S):
        table.reach(ANNA, BELA, name(index), 50.0)
    table.take_outbox()
    assert why_not(table, ANNA, BELA, 50.0) == f"more than {REACHES_PER_S} peers a second were asked for"
    assert why_not(table, ANNA, STRANGER, 50.0 + 0.9 / REACHES_PER_S).startswith("more than")
    assert why_not(table, ANNA, STRANGER, 50.0 + 2.0 / REACHES_PER_S) == "it is not connected with this relay"
    assert why_not(table, BELA, STRANGER, 50.0) == "it is not connected with this relay", "Bela has asked for nobody"


def test_what_a_peer_did_not_ask_for_does_not_pile_up(table: RelayTable) -> None:
    table.reach(ANNA, BELA, ONE, 1e6)
    for index in range(REACHES_PER_S - 1):
        table.reach(ANNA, BELA, name(10 + index), 1e6)
    table.take_outbox()
    assert why_not(table, ANNA, BELA, 1e6).startswith("more than")


def test_a_full_relay_registers_nobody_else() -> None:
    table = RelayTable()
    assert all(table.register(peer(index)) for index in range(MAX_REGISTERED))
    assert not table.register(peer(MAX_REGISTERED)) and table.register(peer(0)), "who is in is in"
    assert table.num_registered == MAX_REGISTERED
    table.gone(peer(7))
    assert table.register(peer(MAX_REGISTERED))
    table.check_integrity()


def test_a_peer_has_so_many_channels_whoever_asks_for_them() -> None:
    table = RelayTable()
    for index in range(MAX_PEER_CHANNELS + 2):
        table.register(peer(index))
    for index in range(MAX_PEER_CHANNELS):
        table.reach(peer(1 + index), peer(0), name(index), 0.0)
    table.take_outbox()
    words = f"one of the two has {MAX_PEER_CHANNELS} channels already"
    assert why_not(table, peer(MAX_PEER_CHANNELS + 1), peer(0)) == words
    assert why_not(table, peer(0), peer(MAX_PEER_CHANNELS + 1)) == words
    table.reach(peer(1), peer(0), name(2000), 1.0)  # in place of the one that it had
    assert [message for _, message in table.take_outbox() if isinstance(message, Channel)]
    assert table.num_channels == MAX_PEER_CHANNELS
    table.gone(peer(1))
    table.take_outbox()
    table.reach(peer(0), peer(MAX_PEER_CHANNELS + 1), name(1000), 2.0)
    assert table.num_channels == MAX_PEER_CHANNELS
    table.check_integrity()


def test_a_relay_has_so_many_channels_all_together() -> None:
    table = RelayTable()
    each = MAX_PEER_CHANNELS // 2
    for index in range(2 * each + 1):
        table.register(peer(index))
    for index in range(MAX_CHANNELS):
        asker = index // each
        table.reach(peer(asker), peer(asker + 1 + index % each), name(index), float(index))
    table.take_outbox()
    assert table.num_channels == MAX_CHANNELS
    assert why_not(table, peer(2 * each), peer(0), 1e9) == f"the relay has {MAX_CHANNELS} channels already"


# ---- rates


def test_a_burst_passes_and_then_as_much_as_the_rate_says_each_way(table: RelayTable) -> None:
    opened(table, 100.0)
    for from_asker in (True, False):
        assert table.passes(ONE, BURST, 100.0, from_asker=from_asker)
        assert not table.passes(ONE, 1, 100.0, from_asker=from_asker)
        assert table.passes(ONE, 1000, 100.01, from_asker=from_asker)
        assert not table.passes(ONE, 1000, 100.01, from_asker=from_asker)
    assert (table.num_passed, table.passed_bytes, table.num_dropped) == (4, 2 * (BURST + 1000), 4)


def test_what_a_channel_did_not_use_does_not_pile_up(table: RelayTable) -> None:
    opened(table, 0.0)
    assert table.passes(ONE, BURST, 1000.0, from_asker=True) and not table.passes(ONE, 1, 1000.0, from_asker=True)


def test_one_pair_takes_nothing_from_another(table: RelayTable) -> None:
    opened(table)
    table.reach(ANNA, CARA, TWO, 0.0)
    table.accept(CARA, TWO)
    assert table.passes(ONE, BURST, 0.0, from_asker=True) and not table.passes(ONE, BURST, 0.0, from_asker=True)
    assert table.passes(TWO, BURST, 0.0, from_asker=True)


def test_who_is_held_back_is_told_once_a_second_and_nobody_else(table: RelayTable) -> None:
    opened(table)
    table.handle_deadline(0.0)
    table.passes(ONE, BURST, 0.0, from_asker=False)
    for _ in range(3):
        table.passes(ONE, 1200, 0.0, from_asker=False)
    table.dropped(ONE, from_asker=False)
    table.handle_deadline(REPORT_S / 2)
    assert said(table) == []
    table.handle_deadline(REPORT_S)
    assert said(table) == [(BELA, Limited(ONE, 4))]
    table.handle_deadline(2 * REPORT_S)
    assert said(table) == [] and table.num_dropped == 4


def test_what_waited_too_long_for_a_channel_that_is_gone_is_counted_all_the_same(table: RelayTable) -> None:
    table.dropped(ONE, from_asker=True)
    assert table.num_dropped == 1


def test_a_burst_holds_what_a_link_has_under_way_four_times() -> None:
    assert DEFAULT_RATE * BURST_S >= 4 * (1 << 20)
