"""A relay's table as hypothesis likes, against the rules told in full: who has which channel, and what may pass."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hopformer.net.identity import PeerId
from hopformer.net.relay_messages import Channel, Leave, Limited, Unreachable
from hopformer.net.relay_table import ACCEPT_S, BURST_S, REACHES_PER_S, RelayTable

RATE = 50_000
PEERS = [PeerId(bytes([index]) * 22) for index in range(5)]
peers = st.sampled_from(PEERS)
steps = st.sampled_from([0.001, 0.02, 0.3, 1.0, 3.0, ACCEPT_S])


class Relaying(RuleBasedStateMachine):
    """What the ends know: each channel from the offer to the end, and every byte that passed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RelayTable(RATE)
        self.now = 0.0
        self.registered: set[PeerId] = set()
        self.offered: dict[bytes, tuple[PeerId, PeerId, float]] = {}  # asker, other, until when
        self.opened: dict[bytes, tuple[PeerId, PeerId]] = {}
        self.asked: dict[PeerId, list[float]] = {}  # when the relay took somebody's question
        self.passed: dict[tuple[bytes, bool], list[tuple[float, int]]] = {}
        self.unreported: dict[tuple[bytes, bool], int] = {}
        self.num_named = 0

    @rule(peer=peers)
    def register(self, peer: PeerId) -> None:
        assert self.table.register(peer)
        self.registered.add(peer)

    @rule(peer=peers)
    def go(self, peer: PeerId) -> None:
        self.table.gone(peer)
        self.registered.discard(peer)
        self.asked.pop(peer, None)  # who connects anew has paid for a handshake
        self.forget(lambda ends: peer in ends[:2])
        self.hear()

    @rule(asker=peers, other=peers)
    def ask_often(self, asker: PeerId, other: PeerId) -> None:
        for _ in range(REACHES_PER_S):
            self.reach(asker, other)

    @rule(asker=peers, other=peers)
    def reach(self, asker: PeerId, other: PeerId) -> None:
        self.num_named += 1
        channel = self.num_named.to_bytes(7, "big")
        self.table.reach(asker, other, channel, self.now)
        out = self.table.take_outbox()
        is_beyond = isinstance(out[-1][1], Unreachable) and out[-1][1].text.startswith("more than")
        if asker in self.registered and not is_beyond:
            self.asked.setdefault(asker, []).append(self.now)
        if isinstance(out[-1][1], Unreachable):
            assert out == [(asker, Unreachable(other, out[-1][1].text))] and out[0][1].text
            is_possible = asker in self.registered and other in self.registered and asker != other
            assert is_beyond or not is_possible, "nothing else is short here"
            return
        assert asker in self.registered and other in self.registered and asker != other
        replaced = [name for name, ends in self.ends().items() if ends[:2] == (asker, other)]
        assert out == [
            *((other, Leave(name, "another one takes its place")) for name in replaced),
            (other, Channel(asker, channel, False)),
        ]
        self.forget(lambda ends: ends[:2] == (asker, other))
        self.offered[channel] = asker, other, self.now + ACCEPT_S

    @rule(data=st.data(), peer=peers)
    def accept(self, data: st.DataObject, peer: PeerId) -> None:
        if not self.offered:
            return
        channel = data.draw(st.sampled_from(sorted(self.offered)))
        asker, other, _ = self.offered[channel]
        self.table.accept(peer, channel)
        out = self.table.take_outbox()
        if peer != other:
            assert out == []
            return
        assert out == [(asker, Channel(other, channel, True))]
        del self.offered[channel]
        self.opened[channel] = asker, other

    @rule(data=st.data(), peer=peers)
    def leave(self, data: st.DataObject, peer: PeerId) -> None:
        if not self.ends():
            return
        channel = data.draw(st.sampled_from(sorted(self.ends())))
        asker, other = self.ends()[channel][:2]
        was_offered = channel in self.offered
        self.table.leave(peer, channel, "bye")
        out = self.table.take_outbox()
        if peer not in (asker, other):
            assert out == []
            return
        if peer == asker:
            assert out == [(other, Leave(channel, "bye"))]
        else:
            assert out == [(asker, Unreachable(other, "bye") if was_offered else Leave(channel, "bye"))]
        self.forget(lambda ends: ends[:2] == (asker, other), only=channel)

    @rule(data=st.data(), num_bytes=st.integers(1, 9000), from_asker=st.booleans(), times=st.integers(1, 5))
    def pass_on(self, data: st.DataObject, num_bytes: int, from_asker: bool, times: int) -> None:
        if not self.ends():
            return
        channel = data.draw(st.sampled_from(sorted(self.ends())))
        ends = self.table.ends(channel, from_asker=from_asker)
        if channel in self.offered:
            assert ends is None
            return
        assert ends == (self.opened[channel] if from_asker else self.opened[channel][::-1])
        for _ in range(times):
            if self.table.passes(channel, num_bytes, self.now, from_asker=from_asker):
                self.passed.setdefault((channel, from_asker), []).append((self.now, num_bytes))
            else:
                self.unreported[channel, from_asker] = self.unreported.get((channel, from_asker), 0) + 1

    @rule(seconds=steps)
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.table.handle_deadline(self.now)
        self.forget(lambda ends: len(ends) == 3 and self.now >= ends[2])
        self.hear()

    def hear(self) -> None:
        """Nobody is told of a channel that he has no end of, and reports tell of what was dropped and nothing else."""
        for peer, message in self.table.take_outbox():
            assert peer in self.registered
            if isinstance(message, Limited):
                asker, _ = self.opened[message.channel]
                assert self.unreported.pop((message.channel, peer == asker)) == message.num_dropped
            else:
                assert isinstance(message, Leave | Unreachable)

    def ends(self) -> dict[bytes, tuple[PeerId, PeerId] | tuple[PeerId, PeerId, float]]:
        return {**self.offered, **self.opened}

    def forget(self, is_over: object, only: bytes | None = None) -> None:
        for channels in (self.offered, self.opened):
            for channel, ends in tuple(channels.items()):
                if only in (None, channel) and is_over(ends):  # type: ignore[operator]
                    del channels[channel]
                    for from_asker in (True, False):
                        self.unreported.pop((channel, from_asker), None)

    @invariant()
    def holds(self) -> None:
        self.table.check_integrity()
        assert self.table.num_registered == len(self.registered)
        assert self.table.num_channels == len(self.offered) + len(self.opened)

    @invariant()
    def nobody_passes_more_than_the_rate(self) -> None:
        for passed in self.passed.values():
            for index, (begin, _) in enumerate(passed):
                allowed = BURST_S * RATE + (self.now - begin) * RATE
                assert sum(num_bytes for _, num_bytes in passed[index:]) <= allowed + 1

    @invariant()
    def nobody_asks_more_often_than_the_rate(self) -> None:
        for times in self.asked.values():
            for index, begin in enumerate(times):
                assert len(times) - index <= REACHES_PER_S * (1 + self.now - begin) + 1e-6


TestRelaying = Relaying.TestCase
TestRelaying.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
