"""A path under whatever its peer, its relays and the network do: bounded, never idle in a circle, and found again."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hopformer.net.identity import PeerId
from hopformer.net.path_tries import LATER_PUNCH_S, MAX_WAYS, PUNCH_EVERY_S, PUNCH_S, REPUNCH_S, TRIES_PER_S
from hopformer.net.paths import STANDBY_S, Outgoing, Path
from hopformer.net.probes import answer, challenge, is_challenge, nonce_of
from hopformer.net.quic import MIN_DATAGRAM_BYTES
from hopformer.net.ways import Direct, Relayed, Way, channel_prefix
from hopformer.net.wire import Hello

OWN, PEERS = Hello(b"i" * 8, b"o" * 8, b"1" * 16), Hello(b"j" * 8, b"p" * 8, b"2" * 16)
DIRECT = [Direct(0, (f"192.0.2.{number}", 4711)) for number in range(1, 60)]
RELAYED: list[Way] = [
    Relayed(PeerId(bytes([number] * 20)), ("127.0.0.1", number), channel_prefix(bytes([number] * 7), is_asker=True))
    for number in range(1, 4)
]
WAYS = st.sampled_from([*DIRECT[:6], *RELAYED])
MAX_BURST = int(PUNCH_S / PUNCH_EVERY_S) + 1


class PathMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.now = 100.0
        self.path = Path(DIRECT[0], lambda num_bytes: next(self.numbers).to_bytes(num_bytes, "big"))
        self.asked: list[Outgoing] = []  # that the peer could still answer
        self.num_sent = 0
        self.began = self.now
        self.send(self.path.begin(OWN, PEERS, self.now))

    def send(self, outgoing: list[Outgoing]) -> None:
        self.num_sent += len(outgoing)
        self.asked += [(datagram, way) for datagram, way in outgoing if is_challenge(datagram)]
        del self.asked[:-50]

    @rule(ways=st.lists(st.sampled_from([*DIRECT, *RELAYED]), max_size=60))
    def offers(self, ways: list[Way]) -> None:
        self.send(self.path.offer(ways, self.now))

    @rule(way=WAYS)
    def hears_from(self, way: Way) -> None:
        self.send(self.path.heard_from(way, self.now))

    @rule(way=WAYS, number=st.integers(0, 9))
    def is_asked(self, way: Way, number: int) -> None:
        outgoing = self.path.take(challenge(OWN, bytes([number] * 8)), way, self.now)
        assert outgoing[0][1] == way and not is_challenge(outgoing[0][0])
        self.send(outgoing)

    @rule(which=st.integers(0, 49), way=WAYS)
    def is_answered(self, which: int, way: Way) -> None:
        if self.asked:
            datagram, _ = self.asked.pop(which % len(self.asked))
            self.send(self.path.take(answer(OWN, nonce_of(datagram)), way, self.now))

    @rule(way=WAYS, waits_for_relay=st.booleans())
    def loses(self, way: Way, waits_for_relay: bool) -> None:
        self.send(self.path.lose(way, self.now, waits_for_relay=waits_for_relay))

    @rule()
    def waits_for_what_is_due(self) -> None:
        if self.path.next_deadline() < 1e9:
            self.now = max(self.now, self.path.next_deadline())
            self.send(self.path.handle_deadline(self.now))

    @rule(seconds=st.floats(0.0, 30.0))
    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.send(self.path.handle_deadline(self.now))

    @rule(is_busy=st.booleans())
    def is_needed(self, is_busy: bool) -> None:
        self.path.is_busy = is_busy
        self.send(self.path.handle_deadline(self.now))

    @invariant()
    def holds_together(self) -> None:
        self.path.check_integrity()
        assert self.path.next_deadline() > self.now, "it would be called in a circle"
        assert self.path.datagram_bytes >= MIN_DATAGRAM_BYTES
        assert self.path.is_stranded or self.path.ways[0] == self.path.way

    @invariant()
    def sends_little(self) -> None:
        """Whatever others do: bursts for ways that it may try, and a rhythm for those that it knows."""
        seconds = self.now - self.began
        tries = MAX_WAYS + TRIES_PER_S * seconds
        later = MAX_WAYS * (seconds / REPUNCH_S + 1) * (LATER_PUNCH_S / PUNCH_EVERY_S + 1)
        rhythm = MAX_WAYS * (seconds / STANDBY_S + 1) + seconds / 0.1
        answers = 1 + seconds  # to what asked above, once a rule
        assert self.num_sent <= MAX_BURST * tries + later + rhythm + answers + 500

    def teardown(self) -> None:
        """A peer that answers on one way is found again there, whatever came before."""
        way = DIRECT[40]
        for _ in range(200):
            self.now += 0.5
            outgoing = [*self.path.offer((way,), self.now), *self.path.handle_deadline(self.now)]
            while outgoing:
                datagram, where = outgoing.pop()
                if is_challenge(datagram) and where == way and len(datagram) < 2000:
                    outgoing += self.path.take(answer(OWN, nonce_of(datagram)), way, self.now + 0.001)
            self.path.check_integrity()
        assert way in self.path.ways


TestPath = PathMachine.TestCase
TestPath.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
