"""Connection: a link, the path below it, and what is known of the peer at its other end."""

from asyncio import TimerHandle
from dataclasses import dataclass, field

from .admission import Known
from .identity import PeerId
from .link import Link
from .paths import Path
from .ways import Way
from .wire import Hello


@dataclass(eq=False, slots=True)
class Connection:
    """One with one peer.

    Attributes:
        hello: what this end says of itself.
        dialled: whom, where this end did.
        began: when.
        way: that the link was told of last.
        peer: whose key was shown, once that is proven and right.
        membership: that it has shown.
        known: once it is let in.
        is_stranger: it dialled us and is on no list.
        ids: by which datagrams find it.
        due: when link or path want to be called; ``timer`` comes then, or earlier and looks again.
    """

    link: Link
    path: Path
    hello: Hello
    dialled: PeerId | None
    began: float
    way: Way
    peer: PeerId | None = None
    membership: bytes = b""
    known: Known | None = None
    is_stranger: bool = False
    ids: list[bytes] = field(default_factory=list)
    due: float = 0.0
    timer: TimerHandle | None = None
