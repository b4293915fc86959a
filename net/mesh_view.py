"""What others need of a directory's entries: for a caller, which peers to reach for its model and which to forget; for
people, which models the mesh has, and what is wrong where one is not there. Pure.

A mesh may be far larger than a caller has use for, so it takes a few peers for each layer, the fastest first, and keeps
to those it has.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ..llama.fingerprint_bits import CONFIG_BYTES
from .announcement import Announcement
from .directory import Entry, is_of_model
from .identity import PeerId
from .layer_range import LayerRange, gaps, listed, merged
from .wire import MAX_ADDRS

MAX_REPLICAS = 8  # peers that a caller reaches for one layer: the one in use, and others in case
MAX_REACHED = 256  # peers that a caller reaches; as many as a BlocksMap may have
MAX_NAMED = 8  # models that a message names


@dataclass(frozen=True, slots=True)
class Changes:
    """What a caller is to do.

    Attributes:
        reach: peers to add to its table, or whose addresses are others now; where each may be dialled.
        ask: peers whose layers are others now, that are to be asked again what they serve.
        gone: peers that are announced no longer, or not with this model.
    """

    reach: dict[PeerId, tuple[str, ...]]
    ask: tuple[PeerId, ...]
    gone: tuple[PeerId, ...]


class MeshView:
    """The peers that a caller uses of all those announced.

    Args:
        fingerprint: of the wanted model, as the caller's own folder has it.
        own: this node, which needs no connection with itself.
    """

    def __init__(self, fingerprint: bytes, num_layers: int, own: PeerId | None = None) -> None:
        self._fingerprint = fingerprint
        self._num_layers = num_layers
        self._own = own
        self._reached: dict[PeerId, Announcement] = {}

    @property
    def reached(self) -> frozenset[PeerId]:
        """The peers that it has told to reach and not told to be gone."""
        return frozenset(self._reached)

    def update(self, entries: Iterable[Entry], unusable: Collection[PeerId] = ()) -> Changes:
        """Take up what is announced now. The ``unusable`` failed, so others are reached for their layers too."""
        ready = {one.peer: one for one in self._ready(entries)}
        kept = {peer: None for peer in self._reached if peer in ready}  # in the order in which they were reached
        gone = tuple(peer for peer in self._reached if peer not in ready)
        num_copies: Counter[int] = Counter()
        for peer in kept:
            if peer not in unusable:
                num_copies.update(_layers_of(ready[peer]))
        for peer, said in sorted(ready.items(), key=lambda one: (_cost_us(one[1]), one[0])):
            if peer in kept or peer in unusable or len(kept) >= MAX_REACHED:
                continue
            if any(num_copies[layer] < MAX_REPLICAS for layer in _layers_of(said)):
                num_copies.update(_layers_of(said))
                kept[peer] = None
        reach = {
            peer: dial_addrs(ready[peer])
            for peer in kept
            if peer not in self._reached or dial_addrs(ready[peer]) != dial_addrs(self._reached[peer])
        }
        ask = tuple(peer for peer in kept if peer in self._reached and self._reached[peer].layers != ready[peer].layers)
        self._reached = {peer: ready[peer] for peer in kept}
        return Changes(reach, ask, gone)

    def check_integrity(self) -> None:
        """Assert every invariant."""
        assert len(self._reached) <= MAX_REACHED and self._own not in self._reached
        assert all(one.is_ready and one.layers for one in self._reached.values())

    def _ready(self, entries: Iterable[Entry]) -> list[Announcement]:
        """Those that serve layers of the model now."""
        verdicts: dict[tuple[bytes, int, LayerRange | None], bool] = {}  # many serve the same layers
        found = []
        for one in (entry.announcement for entry in entries):
            layers = (one.fingerprint, one.num_layers, one.layers)
            if layers not in verdicts:
                verdicts[layers] = is_of_model(one, self._fingerprint, self._num_layers)
            if one.is_ready and verdicts[layers] and one.peer != self._own:
                found.append(one)
        return found


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that the mesh has, or a part of it. Peers count as one if name, config and number of layers agree.

    Attributes:
        served: the layers that somebody serves now.
        missing: those that nobody does.
        num_ready, num_loading: peers that serve layers, and that are about to.
    """

    model: str
    num_layers: int
    served: tuple[LayerRange, ...]
    missing: tuple[LayerRange, ...]
    num_ready: int
    num_loading: int

    @property
    def is_complete(self) -> bool:
        """Whether every layer is served."""
        return not self.missing

    def __str__(self) -> str:
        """For people: "demo (layers 0:4 of 8)"."""
        if self.is_complete:
            return f"{self.model} (layers 0:{self.num_layers} complete)"
        loading = f", {self.num_loading} loading" if self.num_loading else ""
        served = f"layers {listed(self.served)} of {self.num_layers}" if self.served else "no layers yet"
        return f"{self.model} ({served}{loading})"


def offers(entries: Iterable[Entry]) -> list[Offer]:
    """The models of a mesh: complete ones first, then those of most peers."""
    of_model: dict[tuple[str, int, bytes], list[Announcement]] = {}
    for one in (entry.announcement for entry in entries):
        of_model.setdefault((one.model, one.num_layers, one.fingerprint[:CONFIG_BYTES]), []).append(one)
    found = [_offer(model, num_layers, said) for (model, num_layers, _), said in of_model.items()]
    return sorted(found, key=lambda one: (not one.is_complete, -one.num_ready, -one.num_loading, one.model))


def why_nobody(model: str, fingerprint: bytes, num_layers: int, entries: Sequence[Entry]) -> str:
    """One line that says what the mesh lacks of a wanted model, and what it has instead.

    Raises nothing and decides nothing: it is for the end of a search that has found no route.
    """
    own = [one.announcement for one in entries if is_of_model(one.announcement, fingerprint, num_layers)]
    if own:
        offer = _offer(model, num_layers, own)
        if offer.is_complete:
            return f"{model} is announced with all its layers, by {_peers(offer.num_ready)}"
        loading = f"; layers of it are being loaded by {_peers(offer.num_loading)}" if offer.num_loading else ""
        return f"nobody serves layers {listed(offer.missing)} of {model}{loading}"
    if not entries:
        return f"nobody serves {model} here; no peer is announced at all"
    if any(one.announcement.model == model for one in entries):
        return f"nobody serves this {model} here; peers announce a model of that name with another config or weights"
    found = offers(entries)
    more = f", and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return f"nobody serves {model} here; there are: {', '.join(map(str, found[:MAX_NAMED]))}{more}"


def dial_addrs(announcement: Announcement) -> tuple[str, ...]:
    """Where a peer may be dialled: its own addresses, then over its relays, which no number of addresses pushes out."""
    return (*announcement.addrs[: MAX_ADDRS - len(announcement.relays)], *announcement.relays)


def _offer(model: str, num_layers: int, said: Sequence[Announcement]) -> Offer:
    served = merged(one.layers for one in said if one.is_ready and one.layers is not None)
    missing = gaps(served, LayerRange(0, num_layers))
    num_ready = sum(one.is_ready for one in said)
    return Offer(model, num_layers, tuple(served), tuple(missing), num_ready, len(said) - num_ready)


def _peers(number: int) -> str:
    return f"{number} peer{'s' if number != 1 else ''}"


def _layers_of(announcement: Announcement) -> range:
    layers = announcement.layers
    return range(layers.start, layers.end) if layers is not None else range(0)


def _cost_us(announcement: Announcement) -> float:
    """Of a decode step, for each layer; a peer that has measured nothing comes last."""
    num_layers = len(_layers_of(announcement))
    return announcement.layer_us + announcement.queue_us / num_layers if announcement.layer_us else float("inf")
