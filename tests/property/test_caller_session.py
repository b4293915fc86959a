"""CallerSession against real HopSessions over a network that reorders, repeats, cuts and kills, as hypothesis likes.

A layer's output is a checksum over its inputs of all positions so far, so a hop that has computed too little, too much,
twice or in the wrong order gives itself away in the first row behind it. Whatever happens, the rows that come back are
those of a model that was never disturbed.
"""

import random
import struct
import zlib
from collections import defaultdict, deque
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopformer.errors import NoRouteError
from hopformer.net.caller_session import CallerSession, StepOut, Terms
from hopformer.net.hop_outputs import Dial, ReadyStep, Release, Send, Timing, Truncate
from hopformer.net.hop_sessions import HopSessions
from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.messages import Ask, Codec, Dtype, Goodbye, Message, Serving, SessionKey, Step
from hopformer.net.peer_table import PeerTable, Wanted
from hopformer.net.served_span import ServedSpan

NUM_LAYERS = 6
FINGERPRINT = bytes(32)
MAX_TOKENS = 64
SPANS = ["0:3", "3:6", "0:2", "2:6", "1:4", "0:6"]
CALLER = PeerId(bytes(22))
TERMS = Terms(FINGERPRINT, Dtype.FLOAT32, Codec.EXACT, MAX_TOKENS, lease_s=60, reroute_timeout_s=1e6)

Row = bytes  # 4: one element


def layer_output(inputs: list[Row], layer: int) -> Row:
    return struct.pack("<I", zlib.crc32(b"".join(inputs), layer))


def undisturbed(token_ids: list[int]) -> Row:
    """The last layer's output for the last token."""
    rows = [struct.pack("<I", token_id) for token_id in token_ids]
    for layer in range(NUM_LAYERS):
        rows = [layer_output(rows[: index + 1], layer) for index in range(len(rows))]
    return rows[-1]


def peer(index: int) -> PeerId:
    return PeerId(bytes([index + 1]) * 22)


@dataclass(frozen=True)
class Trouble:
    """What happens after so many events: to a hop, or to the connection of two (0 is the caller)."""

    after: int
    kind: str
    one: int
    other: int
    lasts_s: float


troubles = st.builds(
    Trouble,
    after=st.integers(0, 250),
    kind=st.sampled_from(["kill", "freeze", "cut", "leave"]),
    one=st.integers(0, len(SPANS) - 1),
    other=st.integers(-1, len(SPANS) - 1),
    lasts_s=st.sampled_from([0.5, 5.0, 60.0]),
)


class Hop:
    """One hop's core, and the inputs of its layers in place of keys and values."""

    def __init__(self, layers: LayerRange) -> None:
        served = ServedSpan(
            "crc", FINGERPRINT, layers.start, layers.end, NUM_LAYERS, 1, Dtype.FLOAT32, (Codec.EXACT,), MAX_TOKENS, "t"
        )
        self.core = HopSessions(served, num_pages=256, page_size=4)
        self.inputs: dict[tuple[int, int], list[Row]] = defaultdict(list)

    def compute(self, batch: list[ReadyStep], now: float) -> None:
        for ready in batch:
            payload = bytes(ready.step.payload)
            rows = [payload[at : at + 4] for at in range(0, len(payload), 4)]
            for layer in range(ready.start, ready.end):
                inputs = self.inputs[ready.sequence_id, layer]
                del inputs[ready.step.position :]
                assert len(inputs) == ready.step.position
                rows = [layer_output(inputs, layer) for row in rows if inputs.append(row) is None]
            wanted = rows[len(rows) - ready.num_rows :]
            self.core.finish(ready, b"".join(wanted), Timing(now, now, len(batch)))


class Network:
    """Everything but the session: who is connected, what is on its way, and what time it is."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.hops = {peer(index): Hop(LayerRange.parse(span)) for index, span in enumerate(SPANS)}
        listed = {peer(index): LayerRange.parse(span) for index, span in enumerate(SPANS)}
        self.table = PeerTable(Wanted(FINGERPRINT, NUM_LAYERS, Dtype.FLOAT32, 1), listed, {})
        self.session = CallerSession(SessionKey(CALLER, 1), LayerRange(0, NUM_LAYERS), TERMS, self.table)
        self.token_ids: list[int] = []
        self.arrived: dict[int, Row] = {}
        self.connected: set[frozenset[PeerId]] = set()
        self.dead: set[PeerId] = set()
        self.frozen: set[PeerId] = set()
        self.cut: set[frozenset[PeerId]] = set()
        self.streams: dict[tuple[PeerId, PeerId, bool], deque[Message]] = defaultdict(deque)
        self.later: list[tuple[float, Trouble]] = []

    def event(self) -> None:
        """One thing that happens: a message arrives, a hop computes, or time goes on."""
        self.caller_turn()
        streams = [key for key, queue in self.streams.items() if queue and key[1] not in self.frozen]
        busy = [who for who, hop in self.hops.items() if who not in self.frozen and hop.core.has_ready]
        choice = self.random.randrange(len(streams) + len(busy)) if streams or busy else -1
        if choice < 0:
            self.wait()
        elif choice < len(streams):
            self.deliver(streams[choice])
        else:
            who = busy[choice - len(streams)]
            batch = self.hops[who].core.start_batch(self.now)
            self.carry_out(who)  # what is rolled back before it is computed
            self.hops[who].compute(batch, self.now)
            self.carry_out(who)
        self.caller_turn()
        self.session.check_integrity()
        self.table.check_integrity()

    def wait(self) -> None:
        """Nothing is on its way: let time go on to whatever is due next."""
        times = [self.session.next_deadline(self.now), self.table.next_change(self.now), *(at for at, _ in self.later)]
        self.now = max(self.now, min(time for time in times if time is not None))
        for at, trouble in list(self.later):
            if at <= self.now:
                self.later.remove((at, trouble))
                self.mend(trouble)

    def caller_turn(self) -> None:
        self.table.tick(self.now)
        for who in self.table.to_dial(self.now):
            if not self.connect(CALLER, who):
                self.table.disconnected(who, "it does not answer", self.now)
                self.session.lost(who, self.now)
        self.session.tick(self.now)
        for who, out in self.session.take_outbox():
            if isinstance(out, StepOut):
                ids = self.token_ids[out.position : out.position + out.num_tokens]
                payload = b"".join(struct.pack("<I", token_id) for token_id in ids)
                numbers = out.step, out.position, out.num_tokens, out.num_wanted, out.is_replay
                out = Step(self.session.key, *numbers, Dtype.FLOAT32, Codec.EXACT, 1, payload)
            self.send(CALLER, who, out)

    def send(self, sender: PeerId, receiver: PeerId, message: Message) -> None:
        if frozenset((sender, receiver)) in self.connected:
            self.streams[sender, receiver, hasattr(message, "session")].append(message)

    def deliver(self, stream: tuple[PeerId, PeerId, bool]) -> None:
        sender, receiver, _ = stream
        message = self.streams[stream][0] if self.random.random() < 0.05 else self.streams[stream].popleft()
        if receiver == CALLER:
            self.caller_hears(sender, message)
        else:
            self.hops[receiver].core.receive(sender, message, self.now)
            self.carry_out(receiver)

    def caller_hears(self, sender: PeerId, message: Message) -> None:
        if isinstance(message, Serving):
            self.table.serves(sender, message, self.now)
        elif isinstance(message, Goodbye):
            self.table.leaving(sender)
            self.session.leaving(sender, self.now)
        else:
            rows = self.session.received(sender, message, self.now)
            if rows is not None:
                payload = bytes(rows.payload)
                first = rows.position + rows.num_tokens - rows.num_wanted
                found = {first + index: payload[4 * index : 4 * index + 4] for index in range(rows.num_wanted)}
                assert not found.keys() & self.arrived.keys(), "rows came twice"
                self.arrived |= found

    def carry_out(self, who: PeerId) -> None:
        hop = self.hops[who]
        for output in hop.core.take_outputs():
            match output:
                case Send(receiver, message):
                    self.send(who, receiver, message)
                case Dial(other, _):
                    if not self.connect(who, other):
                        hop.core.peer_down(other, self.now)
                case Truncate(sequence_id, length):
                    for layer in range(NUM_LAYERS):
                        del hop.inputs[sequence_id, layer][length:]
                case Release(sequence_id):
                    for layer in range(NUM_LAYERS):
                        hop.inputs.pop((sequence_id, layer), None)

    def connect(self, one: PeerId, other: PeerId) -> bool:
        pair = frozenset((one, other))
        if pair & self.dead or pair in self.cut:
            return False
        if pair not in self.connected:
            self.connected.add(pair)
            for who, new in ((one, other), (other, one)):
                if who == CALLER:
                    self.table.connected(new, self.now)
                    self.send(CALLER, new, Ask())
                else:
                    self.hops[who].core.peer_up(new, self.now)
                    self.carry_out(who)
        return True

    def disconnect(self, pair: frozenset[PeerId]) -> None:
        if pair not in self.connected:
            return
        self.connected.discard(pair)
        one, other = pair
        for who, gone in ((one, other), (other, one)):
            for has_session in (True, False):
                self.streams[who, gone, has_session].clear()
            if who == CALLER:
                self.table.disconnected(gone, "it is gone", self.now)
                self.session.lost(gone, self.now)
            elif who not in self.dead:
                self.hops[who].core.peer_down(gone, self.now)
                self.carry_out(who)

    def strike(self, trouble: Trouble) -> None:
        who = peer(trouble.one)
        pair = frozenset((who, CALLER if trouble.other < 0 else peer(trouble.other)))
        self.later.append((self.now + trouble.lasts_s, trouble))
        match trouble.kind:
            case "kill":
                self.dead.add(who)
                for other in [pair for pair in self.connected if who in pair]:
                    self.disconnect(other)
                self.hops[who] = Hop(LayerRange.parse(SPANS[trouble.one]))
            case "freeze":
                self.frozen.add(who)
            case "cut" if len(pair) == 2:
                self.cut.add(pair)
                self.disconnect(pair)
            case "leave" if who not in self.dead:
                self.hops[who].core.drain(self.now, trouble.lasts_s)
                self.carry_out(who)

    def mend(self, trouble: Trouble) -> None:
        who = peer(trouble.one)
        match trouble.kind:
            case "kill":
                self.dead.discard(who)
            case "freeze":
                self.frozen.discard(who)
            case "cut":
                self.cut.discard(frozenset((who, CALLER if trouble.other < 0 else peer(trouble.other))))
            case "leave":
                self.strike(replace(trouble, kind="kill", lasts_s=0.1))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 30), found=st.lists(troubles, max_size=6), drafts=st.booleans())
def test_whatever_happens_the_rows_are_those_of_an_undisturbed_model(
    seed: int, found: list[Trouble], drafts: bool
) -> None:
    network = Network(seed)
    session, num_events = network.session, 0

    def until_arrived(positions: range) -> None:
        nonlocal num_events
        while not all(position in network.arrived for position in positions):
            for trouble in found:
                if trouble.after == num_events:
                    network.strike(trouble)
            network.event()
            num_events += 1
            assert num_events < 20_000, "it never comes to an end"

    def feed(token_ids: list[int], num_wanted: int) -> None:
        network.token_ids += token_ids
        session.compute(len(token_ids), num_wanted, network.now)

    feed([5, 7, 11, 2, 9], 0)
    feed([3, 3], 0)
    feed([8, 1, 4], 1)
    for _ in range(10):
        end = len(network.token_ids)
        until_arrived(range(end - 1, end))
        row = network.arrived.pop(end - 1)
        assert row == undisturbed(network.token_ids)
        if drafts:
            feed([row[0], 77, 78], 3)
            until_arrived(range(end, end + 3))
            assert network.arrived.pop(end) == undisturbed(network.token_ids[:-2])
            network.arrived.clear()
            session.rollback(end + 1)
            del network.token_ids[end + 1 :]
        feed([row[1]], 1)
    session.close()
    network.caller_turn()
    session.check_integrity()


@given(seed=st.integers(0, 1 << 30), after=st.integers(0, 120))
@settings(max_examples=40, deadline=None)
def test_without_a_route_the_session_ends_in_time_and_can_begin_anew(seed: int, after: int) -> None:
    network = Network(seed)
    session = network.session
    session._terms = replace(TERMS, reroute_timeout_s=30.0)
    network.token_ids = list(range(20))
    session.compute(20, 1, 0.0)
    for _ in range(after):
        network.event()
    struck_at = network.now
    for index in (0, 2, 5):  # everybody who has the first layer
        network.strike(Trouble(0, "kill", index, 0, 1000.0))
    while session.error is None and 19 not in network.arrived:
        network.event()
    if 19 not in network.arrived:
        assert isinstance(session.error, NoRouteError) and "layers 0:1 are served by nobody" in str(session.error)
        assert network.now <= struck_at + 31.0
        assert session.route == () and session.next_deadline(network.now) is None
        for at, trouble in list(network.later):
            network.later.remove((at, trouble))
            network.mend(trouble)
        session.compute(20, 1, network.now)
        while 19 not in network.arrived:
            network.event()
    assert network.arrived[19] == undisturbed(network.token_ids)
