"""AutoSpan: the life of a node that chooses its layers itself, `serve --layers auto`. Pure: no I/O, no clock.

    waiting     announcements come in; or a failed load is over, and the next one is not due
    intending   the choice is announced; whoever announced the same meanwhile with a lower peer id keeps it
    loading     the layers are being loaded; nobody is told that they are ready
    serving     they are ready; now and then it is asked whether to move, placement.py
    draining    the next choice is announced and sessions leave for replicas; then intending, loading and so on

In come ``handle_deadline`` with the announcements and the time, and the events that answer outputs: ``loaded``,
``load_failed`` and ``drained``. Out come outputs, by ``take_outputs``, to be carried out in order; and
``next_deadline``. The shell announces what it is told and nothing else, keeps this node's own announcement among the
others, and fills in speed, load and free room, which it also tells here: ``measured``, ``has_room``.
"""

from dataclasses import dataclass, replace
from enum import Enum

from .identity import PEER_DIGEST_BYTES, PeerId
from .layer_range import LayerRange
from .placement import Mesh, MeshNode


@dataclass(frozen=True, slots=True)
class AnnounceIntent:
    """Announce that ``layers`` will be served here and are not yet; nothing else is."""

    layers: LayerRange


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """Serve ``layers``, which are loaded, and announce it. It also ends a drain that is not to be."""

    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the announcement back: nothing is served, and nothing intended."""


@dataclass(frozen=True, slots=True)
class Load:
    """Fetch and load ``layers``; answer with ``loaded`` or ``load_failed``."""

    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Drain:
    """Say Goodbye, and answer ``drained`` once all sessions are gone, at the latest when ``grace_s`` is over."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Unload:
    """Free the layers that were drained."""


Output = AnnounceIntent | AnnounceReady | Withdraw | Load | Drain | Unload


class Phase(Enum):
    """See the module."""

    WAITING = "waiting"
    INTENDING = "intending"
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class AutoTimes:
    """Durations, in seconds.

    Attributes:
        settle_s: until the announcements of a mesh that is just joined are all there; a directory answers in a second.
        stagger_s: in which nodes that start together choose one after the other, by peer id.
        confirm_s: until an announcement is everywhere, and one that crossed it is here.
        plan_every_s: between two looks at whether to move.
        mend_after_s: that a hole must be there before somebody moves: a peer that restarts is back by then.
        balance_after_s: the same for a move that only balances; several times what announcements take.
        drain_s: that sessions get to leave for replicas, which replay them: thousands of tokens.
        mend_drain_s: the same where a hole waits, without which no session goes on anyway.
        first_backoff_s, longest_backoff_s: after a failed load, doubled each time.
    """

    settle_s: float = 3.0
    stagger_s: float = 5.0
    confirm_s: float = 2.0
    plan_every_s: float = 5.0
    mend_after_s: float = 10.0
    balance_after_s: float = 30.0
    drain_s: float = 30.0
    mend_drain_s: float = 2.0
    first_backoff_s: float = 5.0
    longest_backoff_s: float = 300.0


MAX_YIELDS = 3  # to others' intents, of one choice; then it is loaded, and a move may mend what comes of it
MAX_COUNTED_FAILURES = 8  # doubling beyond that is cut off by longest_backoff_s anyway


class AutoSpan:
    """Owner of one node's place.

    Args:
        own: this node before it serves anything; its ``layers`` are None.
    """

    def __init__(self, own: MeshNode, now: float, times: AutoTimes | None = None) -> None:
        self.times = times or AutoTimes()
        self.phase = Phase.WAITING
        self.num_moves = 0
        self._own = replace(own, layers=None, is_ready=False)
        self._drained: LayerRange | None = None  # what is served until the drain is over
        self._outputs: list[Output] = []
        share = int.from_bytes(own.peer.digest, "big") / 256**PEER_DIGEST_BYTES
        self._deadline: float | None = now + self.times.settle_s + share * self.times.stagger_s
        self._seen: dict[PeerId, LayerRange | None] = {}  # what was announced when the choice was made
        self._num_yields = 0
        self._num_failures = 0
        self._wished: tuple[bool, float] | None = None  # whether a hole is to be mended, and since when

    @property
    def own(self) -> MeshNode:
        """This node as it should be announced now; nothing is while ``layers`` is None."""
        return self._own

    @property
    def layers(self) -> LayerRange | None:
        """That are served, loaded or intended."""
        return self._own.layers

    def take_outputs(self) -> list[Output]:
        """What is to be done since the last call, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` is due; None while only an event can change anything."""
        return self._deadline

    def measured(self, layer_s: float) -> None:
        """A decode step took so long, a layer; it counts from the next choice on."""
        self._own = replace(self._own, layer_s=layer_s)

    def has_room(self, max_layers: int) -> None:
        """So many layers would fit now if none were loaded; below 1, nothing is loaded until there is room again."""
        self._own = replace(self._own, max_layers=max_layers)

    def handle_deadline(self, mesh: Mesh, now: float) -> None:
        """Decide what is due, by all announcements that there are, this node's own among them."""
        if self._deadline is None or now < self._deadline:
            return
        if self.phase is Phase.WAITING:
            self._choose(mesh, now)
        elif self.phase is Phase.INTENDING:
            self._confirm(mesh, now)
        elif self.phase is Phase.SERVING:
            self._consider(mesh, now)
        elif self.phase is Phase.DRAINING:
            self._reconsider(mesh, now)

    def loaded(self, now: float) -> None:
        """The layers that Load named are there."""
        assert self.phase is Phase.LOADING
        self._num_failures = 0
        self._serve(now)

    def load_failed(self, now: float) -> None:
        """They could not be fetched or loaded; what was loaded of them is gone. ``has_room`` before, if it was that."""
        assert self.phase is Phase.LOADING
        backoff_s = min(self.times.first_backoff_s * 2**self._num_failures, self.times.longest_backoff_s)
        self._num_failures = min(self._num_failures + 1, MAX_COUNTED_FAILURES)
        self._own = replace(self._own, layers=None, is_ready=False)
        self._outputs.append(Withdraw())
        self.phase, self._deadline = Phase.WAITING, now + backoff_s

    def drained(self, now: float) -> None:
        """No session is left on the old layers. Nothing to do where the drain was called off meanwhile."""
        if self.phase is not Phase.DRAINING:
            return
        self._drained = None
        self._outputs.append(Unload())
        self.phase, self._deadline = Phase.INTENDING, now

    def check_integrity(self) -> None:
        """Assert every invariant."""
        assert (self.layers is None) == (self.phase is Phase.WAITING)
        assert self._own.is_ready == (self.phase is Phase.SERVING)
        assert (self._drained is not None) == (self.phase is Phase.DRAINING)
        assert (self._deadline is None) == (self.phase is Phase.LOADING)
        assert self._wished is None or self.phase is Phase.SERVING
        assert 0 <= self._num_yields <= MAX_YIELDS and 0 <= self._num_failures <= MAX_COUNTED_FAILURES

    def _choose(self, mesh: Mesh, now: float) -> None:
        """Where to join."""
        if self._own.max_layers < 1:
            self._deadline = now + self.times.longest_backoff_s
            return
        self._num_yields = 0
        self._intend(mesh.choose(self._own), mesh, now)

    def _intend(self, layers: LayerRange, mesh: Mesh, now: float) -> None:
        self._seen = {one.peer: one.layers for one in mesh.nodes}
        self._own = replace(self._own, layers=layers, is_ready=False)
        self._outputs.append(AnnounceIntent(layers))
        self.phase, self._deadline = Phase.INTENDING, now + self.times.confirm_s

    def _confirm(self, mesh: Mesh, now: float) -> None:
        """Load what is intended, or yield to those whose announcements crossed and who go first."""
        assert self.layers is not None
        if self._num_yields < MAX_YIELDS and any(self._goes_first(one) for one in mesh.nodes):
            self._num_yields += 1
            better = mesh.choose(self._own)
            if better != self.layers:
                self._intend(better, mesh, now)
                return
        self._outputs.append(Load(self.layers))
        self.phase, self._deadline = Phase.LOADING, None

    def _goes_first(self, other: MeshNode) -> bool:
        """Whether it wants some of the same layers, came after the choice, and this node is the one to yield."""
        assert self.layers is not None and other.layers is not None
        is_new = self._seen.get(other.peer) != other.layers and other.peer != self._own.peer
        has_right = other.is_ready or other.peer < self._own.peer
        return is_new and has_right and len(other.layers.common(self.layers)) > 0

    def _serve(self, now: float) -> None:
        assert self.layers is not None
        self._own = replace(self._own, is_ready=True)
        self._wished = None
        self._outputs.append(AnnounceReady(self.layers))
        self.phase, self._deadline = Phase.SERVING, now + self.times.plan_every_s

    def _consider(self, mesh: Mesh, now: float) -> None:
        """Move if it is this node's turn, and has been for long enough that all others must know it."""
        self._deadline = now + self.times.plan_every_s
        announced = mesh.node(self._own.peer)
        if announced is None or not announced.is_ready or announced.layers != self.layers:
            self._wished = None  # what others see of this node is old, and so is what they expect of it
            return
        rank = next((rank for rank, move in enumerate(mesh.moves) if move.peer == self._own.peer), None)
        if rank is None:
            self._wished = None
            return
        move = mesh.moves[rank]
        if self._wished is None or self._wished[0] != move.mends:
            self._wished = move.mends, now
        patience_s = self.times.mend_after_s if move.mends else self.times.balance_after_s
        if now - self._wished[1] >= patience_s * (rank + 1):
            self._wished, self._drained, self._num_yields = None, self.layers, 0
            self.num_moves += 1
            self._intend(move.layers, mesh, now)
            self._outputs.append(Drain(self.times.mend_drain_s if move.mends else self.times.drain_s))
            self.phase, self._deadline = Phase.DRAINING, now + self.times.plan_every_s

    def _reconsider(self, mesh: Mesh, now: float) -> None:
        """Stay after all if others left the old layers meanwhile, and no more are mended than would be lost."""
        assert self._drained is not None and self.layers is not None
        self._deadline = now + self.times.plan_every_s
        num_lost = mesh.num_lost(self._own.peer, self._drained)
        if num_lost and num_lost >= mesh.num_holes(self._own.peer, self.layers):
            self._own = replace(self._own, layers=self._drained)
            self._drained = None
            self.num_moves -= 1
            self._serve(now)
