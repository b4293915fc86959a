"""CallerSession: one session as its caller sees it. Which hops it runs on, which steps are on their way, and what to do
when a hop is lost. Pure: messages, failures and ``now`` in, messages out; rows are named here and never seen.

Positions below ``steps.length`` are computed by every hop, and each hop has kept its rows of them. When hops are lost,
others take their places (failover.py says who):

    opening    Open goes to the new hops and Reroute to their neighbours, all at once; steps wait
    joining    all have answered: the rows up to ``steps.length`` flow into the new hops from those before them, and
               behind them the steps that were on their way again, under higher numbers
    joined     steps go out as they come

If nobody can take a lost hop's place, the session waits, and ends with a NoRouteError when ``reroute_timeout_s`` is
over; a hop that was only silent goes on if it is heard again before that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..errors import NoRouteError
from .failover import Fault, Peers, Place, State, find_route
from .identity import PeerId
from .layer_range import LayerRange, listed
from .messages import (
    Close,
    Codec,
    Done,
    Drawn,
    Dtype,
    Lease,
    Message,
    Neighbours,
    Open,
    Opened,
    Reason,
    Refuse,
    Reroute,
    SessionKey,
    Step,
)
from .routes import Hop
from .steps_in_flight import InFlight, StepsInFlight

LEASES_PER_TERM = 3  # two may be late before a session is given up
REPLAY_TOKENS = 128  # in a step that the caller sends again: several, so that hops overlap
_FORGOTTEN = (Reason.UNKNOWN_SESSION, Reason.EVICTED)  # the peer is well, only the session is gone


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session asks of every hop, see Open; and how long nobody may be found for a lost one.

    ``is_drawn``: the last hop draws tokens, and sends them in place of the rows that are wanted.
    """

    fingerprint: bytes
    dtype: Dtype
    codec: Codec
    max_tokens: int
    lease_s: int
    reroute_timeout_s: float
    is_drawn: bool = False


@dataclass(frozen=True, slots=True)
class StepOut:
    """A Step to send, to which the shell adds the rows of its positions."""

    step: int
    position: int
    num_tokens: int
    num_wanted: int
    is_replay: bool


class CallerSession:
    """Owner of a session's route and its steps in flight.

    Args:
        layers: that the route covers.
        peers: who may run them.

    Attributes:
        steps: on their way; ``steps.length`` tokens are computed by every hop.
        num_reroutes: how often hops were replaced.
        error: why the session came to its end; the next ``compute`` begins anew, with nothing computed.
    """

    def __init__(self, key: SessionKey, layers: LayerRange, terms: Terms, peers: Peers) -> None:
        self.key = key
        self.steps = StepsInFlight()
        self.num_reroutes = 0
        self.error: NoRouteError | None = None
        self._layers = layers
        self._terms = terms
        self._peers = peers
        self._places: list[Place] = []
        self._is_joined = False
        self._lost_at: float | None = None  # when a hop was lost, until a step is complete again
        self._leased_at = 0.0
        self._outbox: list[tuple[PeerId, Message | StepOut]] = []

    @property
    def route(self) -> tuple[Hop, ...]:
        """Who runs which layers; empty before the first step."""
        return tuple(place.hop for place in self._places)

    @property
    def is_in_trouble(self) -> bool:
        """Whether a hop was lost, or none found, and no step was completed since."""
        return self._lost_at is not None

    def take_outbox(self) -> list[tuple[PeerId, Message | StepOut]]:
        """What is to be sent, in this order."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def compute(self, num_tokens: int, num_wanted: int, now: float) -> None:
        """Let ``num_tokens`` more be computed, behind all that are; the rows of the last ``num_wanted`` come back."""
        self.error = None
        step = self.steps.add(num_tokens, num_wanted)
        if self._is_stranded:
            self._repair(now)
        elif self._is_joined:
            self._send(step, now)

    def rollback(self, length: int) -> int:
        """Forget the tokens from ``length`` on; hops learn it from the next step. Returns where that must begin."""
        end = self.steps.rollback(length)
        if not self.steps:
            self._lost_at = None
        return end

    def received(self, peer: PeerId, message: Message, now: float) -> Step | Drawn | None:
        """Take a message of this session; returns the rows or tokens that arrived, if they were waited for."""
        place = next((one for one in self._places if one.hop.peer == peer), None)
        if place is None:
            return None
        match message:
            case Opened() if place.state is State.OPENING:
                place.state = State.OPENED
                self._heard(place, now)
                self._join_if_ready(now)
            case Done():
                self._done(place, message, now)
            case Step() | Drawn():
                return self._arrived(place, message, now)
            case Refuse():
                self._refused(place, message, now)
        return None

    def lost(self, peer: PeerId, now: float) -> None:
        """The connection with ``peer`` is gone."""
        self._mark(peer, Fault.GONE, now)

    def leaving(self, peer: PeerId, now: float) -> None:
        """``peer`` will end soon: let another take its place, if there is one."""
        self._mark(peer, Fault.LEAVING, now)

    def tick(self, now: float) -> None:
        """Look at deadlines, and for hops if some are missing."""
        culprit = next((place for place, due in self._dues() if due <= now), None)
        if culprit is not None:
            self._blame(culprit, now)
        elif self.steps and (not self._places or any(place.fault for place in self._places)):
            self._repair(now)
        if self._places and now >= self._lease_due:
            self._leased_at = now
            self._outbox.extend((hop.peer, Lease(self.key)) for hop in self.route)

    def next_deadline(self, now: float) -> float | None:
        """When ``tick`` has something to do; None if nothing is under way."""
        times = [self._lease_due] if self._places else []
        times += [due for _, due in self._dues()]
        if self._lost_at is not None and self._is_stranded:
            change = self._peers.next_change(now)
            times += [self._lost_at + self._terms.reroute_timeout_s, *([change] if change is not None else [])]
        return min(times, default=None)

    def close(self) -> None:
        """End the session at every hop; nothing of it is computed any more."""
        self._outbox.extend((hop.peer, Close(self.key)) for hop in self.route)
        self._places, self._is_joined, self._lost_at = [], False, None
        self.steps.rollback(0)

    def check_integrity(self) -> None:
        """Assert every invariant."""
        layers = [hop.layers for hop in self.route]
        if layers:
            assert (layers[0].start, layers[-1].end) == (self._layers.start, self._layers.end)
            assert all(one.end == other.start for one, other in pairwise(layers)), "a torn route"
        assert len({hop.peer for hop in self.route}) == len(layers), "a peer has two places"
        self.steps.check_integrity()
        if self._is_joined and not self._is_stranded:
            assert all(place.state in (State.FILLING, State.FULL) for place in self._places)
            assert all(one.step for one in self.steps), "a step was not sent"
        assert self.steps or self._lost_at is None, "nothing waits, and its time runs"
        assert self._lost_at is not None or not (self.steps and self._is_stranded), "steps wait, and no time runs"

    @property
    def _is_stranded(self) -> bool:
        return not self._places or any(place.is_lost for place in self._places)

    @property
    def _lease_due(self) -> float:
        return self._leased_at + self._terms.lease_s / LEASES_PER_TERM

    def _send(self, step: InFlight, now: float) -> None:
        """Send a step to the first hop."""
        self.steps.sent(step, now)
        out = StepOut(step.step, step.position, step.num_tokens, step.num_wanted, is_replay=False)
        self._outbox.append((self._places[0].hop.peer, out))

    # What hops say

    def _done(self, place: Place, done: Done, now: float) -> None:
        self._heard(place, now)
        num_tokens = self.steps.num_tokens(done.step)
        if num_tokens is not None:
            self._peers.worked(place.hop, num_tokens, done)
        step = self.steps.find(done.step)
        if step is None:
            return  # of a replay, of a step that was sent again, or of one that is complete
        step.done_at.setdefault(place.hop.peer, now)
        if place.state is State.FILLING:
            place.state = State.FULL
        if place is self._places[-1] and step.num_wanted == 0:
            self._complete(step, now)

    def _arrived(self, place: Place, rows: Step | Drawn, now: float) -> Step | Drawn | None:
        step = self.steps.find(rows.step)
        if place is not self._places[-1] or step is None or step.is_complete:
            return None
        if not self._answers(rows, step):
            self._peers.failed(place.hop.peer, "it answers another step than it was asked", now)
            self._mark(place.hop.peer, Fault.GONE, now)
            return None
        self._heard(place, now)
        if place.state is State.FILLING:
            place.state = State.FULL
        self._complete(step, now)
        return rows if step.num_wanted else None

    def _answers(self, rows: Step | Drawn, step: InFlight) -> bool:
        """Whether a hop gave what it was asked for."""
        if isinstance(rows, Drawn):
            first = step.position + step.num_tokens - step.num_wanted
            return self._terms.is_drawn and (rows.position, len(rows.tokens)) == (first, step.num_wanted)
        asked = step.position, step.num_tokens, step.num_wanted
        return not self._terms.is_drawn and (rows.position, rows.num_tokens, rows.num_wanted) == asked

    def _heard(self, place: Place, now: float) -> None:
        """A hop is well, even if it was silent for too long."""
        place.heard_at = now
        if place.fault is Fault.SILENT:
            place.fault = None
            if self._is_joined and not self._is_stranded:
                for step in self.steps:
                    if step.step == 0:
                        self._send(step, now)

    def _complete(self, step: InFlight, now: float) -> None:
        self.steps.complete(step)
        self._lost_at = now if self.steps and self._is_stranded else None

    def _refused(self, place: Place, refuse: Refuse, now: float) -> None:
        peer = place.hop.peer
        if refuse.reason is Reason.MODEL:
            self._peers.refuses_model(peer, refuse.text)
        elif refuse.reason is Reason.DRAINING:
            self._peers.leaving(peer)
        elif refuse.reason not in _FORGOTTEN or place.state is not State.FULL:
            self._peers.failed(peer, refuse.text, now)
        self._mark(peer, Fault.GONE, now)

    # Deadlines

    def _dues(self) -> Iterator[tuple[Place, float]]:
        """Places that are waited for, each with its deadline."""
        for place in self._places:
            if place.state is State.OPENING and place.fault is None:
                yield place, place.since + self._peers.open_allowance_s()
        if not self._is_joined or self._is_stranded or not self.steps:
            return
        step = self.steps.first
        since = step.sent_at
        for place in self._places:
            done_at = step.done_at.get(place.hop.peer)
            if done_at is None:
                num_tokens = step.num_tokens + (self.steps.length if place.state is State.FILLING else 0)
                yield place, max(since, place.heard_at) + self._peers.allowance_s(place.hop, num_tokens)
                return
            since = max(since, done_at)
        yield self._places[-1], since + self._peers.open_allowance_s()  # all are done, and its rows do not come

    def _blame(self, place: Place, now: float) -> None:
        index = self._places.index(place)
        self._peers.failed(place.hop.peer, "it is silent", now)
        if self._is_joined and index > 0:
            self._peers.link_failed((self._places[index - 1].hop.peer, place.hop.peer), now)
        self._mark(place.hop.peer, Fault.SILENT, now)

    # Failover

    def _mark(self, peer: PeerId, fault: Fault, now: float) -> None:
        place = next((one for one in self._places if one.hop.peer == peer), None)
        if place is not None and not (place.is_lost and fault is not Fault.GONE):
            place.fault = fault
            if self.steps:  # else nothing hurries: the next step finds out who is there then
                self._repair(now)

    def _repair(self, now: float) -> None:
        """Find hops for the places that are lost, and open the session there; without any, wait, or give up."""
        if self._is_stranded and self._lost_at is None:
            self._lost_at = now
        route = find_route(self._places, self._layers, self.key.caller, self._peers, now)
        if route is not None and (route != self.route or self._is_stranded):
            self._adopt(route, now)
        elif route is None and self._lost_at is not None and now >= self._lost_at + self._terms.reroute_timeout_s:
            self._give_up(now)

    def _adopt(self, route: tuple[Hop, ...], now: float) -> None:
        """Take a new route: close what is left of the old one, open what is new."""
        staying = {place.hop: place for place in self._places if place.may_stay(keep_leaving=True)}
        leaving = [place for place in self._places if place.hop not in route or place.hop not in staying]
        self._outbox.extend((place.hop.peer, Close(self.key)) for place in leaving)
        if self._places:
            self.num_reroutes += self.steps.has_sent
        else:
            self._leased_at = now
        self._places = [staying.get(hop) or Place(hop, State.OPENING, now, now) for hop in route]
        self._is_joined = False
        for index, place in enumerate(self._places):
            neighbours = self._neighbours(index)
            if place.hop not in staying:
                self._outbox.append((place.hop.peer, self._open(place.hop, neighbours)))
            elif place.told != neighbours:  # well before steps can come from a new one
                self._outbox.append((place.hop.peer, Reroute(self.key, neighbours, replay_to=0)))
            place.told = neighbours
        self._join_if_ready(now)

    def _open(self, hop: Hop, neighbours: Neighbours) -> Open:
        terms = self._terms
        return Open(
            session=self.key,
            fingerprint=terms.fingerprint,
            start=hop.layers.start,
            end=hop.layers.end,
            dtype=terms.dtype,
            codec=terms.codec,
            max_tokens=terms.max_tokens,
            lease_s=terms.lease_s,
            neighbours=neighbours,
        )

    def _join_if_ready(self, now: float) -> None:
        """Once every hop has opened the session, fill the new ones and send again what was on its way."""
        ready = (State.OPENED, State.FULL)
        if self._is_joined or self._is_stranded or any(place.state not in ready for place in self._places):
            return
        self._is_joined = True
        for index, place in enumerate(self._places):
            if place.state is State.FULL and self._is_new(index + 1) and self.steps.length:
                self._outbox.append((place.hop.peer, Reroute(self.key, self._neighbours(index), self.steps.length)))
        if self._is_new(0):
            self._replay()
        for place in self._places:
            if place.state is State.OPENED:
                place.state, place.heard_at = State.FILLING if self.steps.length else State.FULL, now
        for step in self.steps:
            self._send(step, now)

    def _is_new(self, index: int) -> bool:
        return index < len(self._places) and self._places[index].state is State.OPENED

    def _neighbours(self, index: int) -> Neighbours:
        previous = self._places[index - 1].hop.peer if index else self.key.caller
        if index + 1 == len(self._places):
            return Neighbours(previous, self.key.caller, ())
        following = self._places[index + 1].hop.peer
        return Neighbours(previous, following, self._peers.addrs(following))

    def _replay(self) -> None:
        """Send the first hop again what it must have computed."""
        for position in range(0, self.steps.length, REPLAY_TOKENS):
            num_tokens = min(REPLAY_TOKENS, self.steps.length - position)
            out = StepOut(0, position, num_tokens, num_wanted=0, is_replay=True)
            self._outbox.append((self._places[0].hop.peer, out))

    def _give_up(self, now: float) -> None:
        """End the session with an error that says who is missing."""
        missing = self._peers.missing(self._layers, now)
        missing = missing or [place.hop.layers for place in self._places if place.is_lost] or [self._layers]
        self.error = NoRouteError(
            f"layers {listed(missing)} are served by nobody, after {self._terms.reroute_timeout_s:g} s of trying: "
            f"{self._peers.why(missing, now)}"
        )
        self.close()
