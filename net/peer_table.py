"""PeerTable: what a caller knows of the peers that may run its layers. Who is connected and serves what, how long steps
take there, and who failed and is left alone for a while. Pure: it never looks at a clock, ``now`` is told.

Sessions ask it for routes; remote.py tells it what happens.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..llama.fingerprint_bits import same_model
from .identity import PeerId
from .layer_range import LayerRange, gaps
from .messages import Codec, Done, Dtype, Serving
from .routes import Candidate, Ends, Hop, Link, cheapest_route, route_cost_s
from .switchboard import PeerStats

FIRST_BACKOFF_S = 0.5  # as long as it takes to notice a death: sooner would find the same
MAX_BACKOFF_S = 30.0
MAX_COUNTED_FAILURES = 6  # doubling beyond that is cut off by MAX_BACKOFF_S anyway
LINK_BACKOFF_S = 60.0  # a pair that cannot reach each other rarely can a moment later
DIAL_TIMEOUT_S = 10.0  # two of the longest handshakes over a relay
UNKNOWN_LAYER_S = 0.001  # a layer's decode step where nothing is measured: a small model on a laptop
MAX_DECODE_TOKENS = 4  # steps of so few tokens take as long as one
NEWEST_SHARE = 0.2  # of the newest measurement in a mean: one slow step moves it, and five have nearly replaced it


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a silent peer is waited for, in seconds.

    Attributes:
        open_s: for the answer to an Open, which needs no computing.
        least_s: for a step, at least; what a peer that serves others may need to come round to it.
        unmeasured_s: for a step of a peer that has not shown yet how fast it is.
        factor: times what a step is expected to take.
        slowest_link: bytes a second that rows travel with, at least; 8 Mbit/s.
    """

    open_s: float = 5.0
    least_s: float = 2.0
    unmeasured_s: float = 15.0
    factor: float = 8.0
    slowest_link: float = 1e6


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model that peers must serve, and the activations that they must take.

    Attributes:
        width: elements in a row.
        has_head: whoever runs the last layer must draw tokens too.
    """

    fingerprint: bytes
    num_layers: int
    dtype: Dtype
    width: int
    codec: Codec = Codec.EXACT
    has_head: bool = False

    @property
    def row_bytes(self) -> int:
        """Of a token's activations."""
        return self.width * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class PeerEntry:
    """One peer. Times are means in seconds, of decode steps for one layer; None while nothing is measured.

    Attributes:
        listed: the layers that the map gives it; None for whatever it serves.
        layers: those of ``listed`` that it said it serves.
        free_tokens: that it had room for when it said what it serves.
        problem: why it is not used; empty where there is no reason.
        failure: what it did last that it should not.
        retry_at: it is left alone until then.
        is_forgotten: it is to go once it is not connected any more.
        asked_at, answer_s: when it was last asked what it serves, and how long it took to answer.
    """

    addrs: tuple[str, ...]
    listed: LayerRange | None
    layers: LayerRange | None = None
    is_connected: bool = False
    is_leaving: bool = False
    is_forgotten: bool = False
    dialled_at: float | None = None
    free_tokens: int = 0
    problem: str = "not connected yet"
    failure: str = ""
    num_failures: int = 0
    retry_at: float = 0.0
    asked_at: float = 0.0
    answer_s: float = 0.0
    layer_s: float | None = None
    token_layer_s: float | None = None
    queue_s: float = 0.0
    batch_size: int = 0
    stats: PeerStats | None = None
    num_steps: int = 0

    @property
    def rtt_s(self) -> float:
        """Round trip, as well as it is known."""
        return self.stats.rtt_s if self.stats else self.answer_s


class PeerTable:
    """Owner of the entries.

    Args:
        listed: the layers of each peer, as a BlocksMap has them.
        addrs: where they are.
    """

    def __init__(
        self,
        wanted: Wanted,
        listed: Mapping[PeerId, LayerRange],
        addrs: Mapping[PeerId, tuple[str, ...]],
        patience: Patience | None = None,
    ) -> None:
        self._wanted = wanted
        self.patience = patience or Patience()
        self.entries = {peer: PeerEntry(addrs.get(peer, ()), layers) for peer, layers in listed.items()}
        self._broken: dict[Link, float] = {}

    def add(self, peer: PeerId, addrs: tuple[str, ...]) -> None:
        """Take up a peer that no map lists; whatever it serves may be used."""
        entry = self.entries.setdefault(peer, PeerEntry(addrs, None))
        entry.addrs = addrs
        entry.retry_at = 0.0
        entry.is_forgotten = False

    def forget(self, peer: PeerId) -> None:
        """A peer that no map lists is announced no longer; while it is connected it may still be used."""
        entry = self.entries.get(peer)
        if entry is None or entry.listed is not None:
            return
        if entry.is_connected:
            entry.is_forgotten = True
        else:
            del self.entries[peer]

    def unusable(self, now: float) -> set[PeerId]:
        """Who failed, or serves nothing that is wanted."""
        return {
            peer
            for peer, entry in self.entries.items()
            if entry.retry_at > now or (entry.is_connected and entry.layers is not None and entry.problem)
        }

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer may be dialled."""
        entry = self.entries.get(peer)
        return entry.addrs if entry else ()

    def to_dial(self, now: float) -> list[PeerId]:
        """Peers that it is time to dial; they count as dialled from now on."""
        due = [
            peer
            for peer, entry in self.entries.items()
            if not entry.is_connected and entry.dialled_at is None and entry.retry_at <= now
        ]
        for peer in due:
            self.entries[peer].dialled_at = now
        return due

    def connected(self, peer: PeerId, now: float) -> None:
        """A connection is there; the peer was asked what it serves."""
        self.asked(peer, now)
        if entry := self.entries.get(peer):
            entry.is_connected, entry.is_leaving, entry.dialled_at = True, False, None
            entry.problem = "it has not said yet what it serves"

    def asked(self, peer: PeerId, now: float) -> None:
        """A peer was asked what it serves; how long its answer takes is a first measure of the path."""
        if entry := self.entries.get(peer):
            entry.asked_at = now

    def serves(self, peer: PeerId, answer: Serving, now: float) -> None:
        """A peer said what it serves."""
        if not (entry := self.entries.get(peer)):
            return
        entry.answer_s = now - entry.asked_at
        served = LayerRange(answer.start, answer.end)
        entry.is_leaving &= not served
        entry.layers = served if entry.listed is None else served.common(entry.listed)
        entry.free_tokens = answer.free_tokens
        entry.problem = ""
        if not served:
            entry.problem = "it serves no layers"
        elif not self._is_same_model(answer):
            entry.problem = f"it serves another model, {answer.model}"
        elif answer.dtype is not self._wanted.dtype:
            dtype = "none" if answer.dtype is None else answer.dtype.name.lower()
            entry.problem = f"it takes {dtype} activations, and these are {self._wanted.dtype.name.lower()}"
        elif self._wanted.codec not in answer.codecs:
            entry.problem = f"it does not take activations packed as {self._wanted.codec.name.lower()}"
        elif self._wanted.has_head and answer.end == self._wanted.num_layers and not answer.has_head:
            entry.problem = "it has not the head, which is to draw the tokens; its --head loads it"
        elif not entry.layers:
            entry.problem = f"it serves layers {served}, and not {entry.listed}"
        if served and answer.step_us and entry.layer_s is None:
            entry.layer_s = answer.step_us / 1e6 / len(served)

    def disconnected(self, peer: PeerId, reason: str, now: float) -> None:
        """The connection is gone, or was never made."""
        if entry := self.entries.get(peer):
            entry.is_connected, entry.dialled_at, entry.layers, entry.stats = False, None, None, None
            self.failed(peer, reason, now)
            if entry.is_forgotten:
                del self.entries[peer]

    def failed(self, peer: PeerId, reason: str, now: float) -> None:
        """A peer did not do what it should; leave it alone, each time twice as long."""
        entry = self.entries.get(peer)
        if entry is None:
            return
        entry.failure = reason
        if not entry.is_connected:
            entry.problem = reason
        if now < entry.retry_at:
            return  # several sessions tell of the same failure
        entry.retry_at = now + min(FIRST_BACKOFF_S * 2**entry.num_failures, MAX_BACKOFF_S)
        entry.num_failures = min(entry.num_failures + 1, MAX_COUNTED_FAILURES)

    def link_failed(self, link: Link, now: float) -> None:
        """Steps from one peer did not reach the next, or were not answered: do not pair them for a while."""
        self._broken[link] = now + LINK_BACKOFF_S

    def leaving(self, peer: PeerId) -> None:
        """A peer takes no new sessions."""
        if entry := self.entries.get(peer):
            entry.is_leaving = True

    def refuses_model(self, peer: PeerId, text: str) -> None:
        """A peer cannot run these layers at all."""
        if entry := self.entries.get(peer):
            entry.problem = text or "it refuses the model"

    def worked(self, hop: Hop, num_tokens: int, done: Done) -> None:
        """A hop computed a step of so many tokens."""
        if not (entry := self.entries.get(hop.peer)):
            return
        entry.num_failures, entry.num_steps = 0, entry.num_steps + 1
        layer_s = done.compute_us / 1e6 / len(hop.layers)
        if num_tokens <= MAX_DECODE_TOKENS:
            entry.layer_s = _mean(entry.layer_s, layer_s)
        else:
            entry.token_layer_s = _mean(entry.token_layer_s, layer_s / num_tokens)
        entry.queue_s, entry.batch_size = _mean(entry.queue_s, done.queue_us / 1e6), done.batch_size

    def observe(self, stats: Mapping[PeerId, PeerStats]) -> list[PeerId]:
        """Take up how connections do; returns the peers whose path is another than before, to be measured again."""
        moved = []
        for peer, entry in self.entries.items():
            new = stats.get(peer)
            if new and entry.stats and new.addr != entry.stats.addr:
                entry.queue_s = 0.0
                moved.append(peer)
            entry.stats = new or entry.stats
        return moved

    def tick(self, now: float) -> None:
        """Give up dialling who has not answered for too long, and forget links' failures that are long past."""
        for peer, entry in self.entries.items():
            if entry.dialled_at is not None and now >= entry.dialled_at + DIAL_TIMEOUT_S:
                self.disconnected(peer, "it does not answer", now)
        self._broken = {link: until for link, until in self._broken.items() if now < until}

    def next_change(self, now: float) -> float | None:
        """When waiting alone may bring a peer or a link back, or a dialling to its end."""
        times = [entry.retry_at for entry in self.entries.values()]
        times += [entry.dialled_at + DIAL_TIMEOUT_S for entry in self.entries.values() if entry.dialled_at is not None]
        return min((time for time in (*times, *self._broken.values()) if time > now), default=None)

    def route(
        self, layers: LayerRange, now: float, ends: Ends, taken: Collection[PeerId] = (), *, avoid_links: bool = True
    ) -> tuple[Hop, ...] | None:
        """The cheapest hops for ``layers``, without the peers that are ``taken``; None if there are none now.

        With ``avoid_links`` none of the links that failed lately is among them.
        """
        candidates = [one for one in self.candidates(now) if one.peer not in taken]
        broken = {link for link, until in self._broken.items() if now < until} if avoid_links else set()
        return cheapest_route(candidates, layers, ends, broken)

    def cost_s(self, route: Sequence[Hop], now: float) -> float | None:
        """Seconds that a decode step takes on ``route``; None where one of its peers cannot be used."""
        candidates = self.candidates(now)
        if not {hop.peer for hop in route} <= {one.peer for one in candidates}:
            return None
        return route_cost_s(candidates, route)

    def candidates(self, now: float) -> list[Candidate]:
        """Everybody that a new session may use now."""
        return [
            Candidate(
                peer,
                entry.layers,
                (UNKNOWN_LAYER_S if entry.layer_s is None else entry.layer_s) + entry.queue_s / len(entry.layers),
                entry.rtt_s,
            )
            for peer, entry in self.entries.items()
            if entry.layers and self._is_usable(entry, now)
        ]

    def missing(self, layers: LayerRange, now: float) -> list[LayerRange]:
        """The layers among these that nobody serves who can be used now."""
        return gaps((one.layers for one in self.candidates(now)), layers)

    @property
    def is_settled(self) -> bool:
        """Whether every peer has said what it serves, or could not be reached."""
        return all(
            entry.num_failures if not entry.is_connected else entry.layers is not None
            for entry in self.entries.values()
        )

    def free_tokens(self, layers: LayerRange, now: float) -> int:
        """How many tokens' keys and values fit into the peers that have most room for ``layers``."""
        rooms = [(one.layers, self.entries[one.peer].free_tokens) for one in self.candidates(now)]
        return min(
            max((room for own, room in rooms if own.start <= layer < own.end), default=0)
            for layer in range(layers.start, layers.end)
        )

    def why(self, layers: Iterable[LayerRange], now: float) -> str:
        """For each peer that should serve some of these layers, why it does not."""
        wanted = list(layers)
        reasons = [
            f"{peer}: {entry.problem or ('it is leaving' if entry.is_leaving else entry.failure)}"
            for peer, entry in self.entries.items()
            if not self._is_usable(entry, now)
            and any(entry.listed is None or entry.listed.common(one) for one in wanted)
        ]
        return "; ".join(reasons) or "no peer is known that does"

    def open_allowance_s(self) -> float:
        """Seconds that a peer gets to answer an Open before it counts as silent."""
        return self.patience.open_s

    def allowance_s(self, hop: Hop, num_tokens: int) -> float:
        """Seconds that a hop gets for a step of so many tokens before it counts as silent.

        They double with each failure: in the end a peer is waited for that has no replica and is merely slow.
        """
        entry, patience = self.entries.get(hop.peer), self.patience
        transfer_s = num_tokens * self._wanted.row_bytes / patience.slowest_link
        if entry is None or entry.layer_s is None:
            return (patience.unmeasured_s + transfer_s) * 2 ** (entry.num_failures if entry else 0)
        layer_s = entry.layer_s * num_tokens
        if entry.token_layer_s is not None:
            layer_s = max(entry.layer_s, entry.token_layer_s * num_tokens)
        expected_s = layer_s * len(hop.layers) + entry.queue_s + entry.rtt_s
        return (patience.least_s + patience.factor * expected_s + transfer_s) * 2**entry.num_failures

    def check_integrity(self) -> None:
        """Assert every invariant."""
        for peer, entry in self.entries.items():
            assert not (entry.is_connected and entry.dialled_at is not None), f"{peer} is dialled and connected"
            assert entry.is_connected or entry.layers is None, f"{peer} is gone and serves layers"
            assert entry.is_connected or not entry.is_forgotten, f"{peer} is gone and not forgotten"
            assert 0 <= entry.num_failures <= MAX_COUNTED_FAILURES

    def _is_same_model(self, answer: Serving) -> bool:
        wanted = self._wanted
        return same_model(wanted.fingerprint, answer.fingerprint, wanted.num_layers, answer.start, answer.end)

    @staticmethod
    def _is_usable(entry: PeerEntry, now: float) -> bool:
        return entry.is_connected and not entry.problem and not entry.is_leaving and entry.retry_at <= now


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + NEWEST_SHARE * (new - old)
