"""Who takes turns at one hop in `hopformer bench net`: ours, aioquic's own asyncio API, and TCP with TLS."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .net_contender import Aioquic, Contender, OurEndpoint, OurSwitchboard, Tls


@dataclass(frozen=True, slots=True)
class Line:
    """A contender of a run.

    Attributes:
        name: in the rows.
        kind: what net_echo.py is to be at the far end.
        make: its near end, for datagrams of so many bytes.
        datagram_bytes: the largest; 0 where TCP decides.
        distribution: whose version a row names; None is ours.
        num_processes: at both ends.
    """

    name: str
    kind: str
    make: Callable[[int], Contender]
    datagram_bytes: int
    distribution: str | None
    num_processes: int = 2


LINES = (
    Line("hopformer, 1452", "hopformer", OurEndpoint, 1452, None),
    Line("hopformer, 8900", "hopformer", OurEndpoint, 8900, None),
    Line("hopformer in processes, 8900", "switchboard", OurSwitchboard, 8900, None, 4),
    Line("aioquic, 1452", "aioquic", Aioquic, 1452, "aioquic"),
    Line("aioquic, 8900", "aioquic", Aioquic, 8900, "aioquic"),
    Line("TCP with TLS", "tls", Tls, 0, None),
)

# Over emulated links, where cubic is what a window that halves at each loss comes to
PATH_LINES = (
    LINES[0],
    Line("aioquic cubic, 1452", "aioquic", partial(Aioquic, congestion_control="cubic"), 1452, "aioquic"),
)
