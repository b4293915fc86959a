"""A node that is dialled by its id over a relay, and one that dials it, each in a process of its own.

Run as ``python -m hopformer.bench.net_dial serve RELAY WAYS`` or ``... call RELAY WAYS PEER TIMES WAIT_S``, where RELAY
is PEER_ID@HOST:PORT, and WAYS says how a straight way is looked for: punch, as hopformer does, or ice. The one that
serves prints its peer id once it is at the relay, and ends when its standard input does; the one that calls prints what
it saw as a line of JSON.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal

from ..net.endpoint import Endpoint
from ..net.ice import IceAgents
from ..net.identity import Identity, PeerId
from ..net.switchboard import Event, PeerDown, PeerUp, Received
from ..net.ways import Relayed
from .net_echo import answer

Ways = Literal["punch", "ice"]
LISTEN = ("0.0.0.0:0",)
REGISTER_S = 10.0
CONNECT_S = 10.0
_EVERY_S = 0.002


@dataclass(frozen=True, slots=True)
class Dialled:
    """How one dial went, in seconds from its beginning; ``straight_s`` is None where it stayed relayed."""

    connected_s: float
    straight_s: float | None


async def at_relay(relay: str, ways: Ways, events: list[Event] | None = None) -> Endpoint:
    """An endpoint that others reach through a relay; without ``events`` it answers steps.

    Raises:
        TimeoutError: the relay does not answer.
    """

    def tell(event: Event) -> None:
        if events is not None:
            events.append(event)
        elif isinstance(event, Received) and (message := answer(event.message)) is not None:
            endpoint.send(event.peer, message)

    endpoint = Endpoint(Identity.generate(), None, tell)
    endpoint.listen(LISTEN)
    if ways == "ice":
        endpoint.punches = False
        endpoint.ice = IceAgents(endpoint, endpoint.carrier, endpoint.relays)
    endpoint.relays.keep(relay)
    async with asyncio.timeout(REGISTER_S):
        while not endpoint.relays.addrs:
            await asyncio.sleep(_EVERY_S)
    return endpoint


async def dial(relay: str, ways: Ways, peer: PeerId, wait_s: float) -> Dialled:
    """Dial by a node that is at the relay already, and wait until it has a straight way, for ``wait_s`` at most.

    Raises:
        ConnectionError: it is not reached.
        TimeoutError: the same.
    """
    events: list[Event] = []
    endpoint = await at_relay(relay, ways, events)
    try:
        began = time.perf_counter()
        endpoint.dial(peer, (relay,))
        async with asyncio.timeout(CONNECT_S):
            while PeerUp(peer) not in events:
                if events and isinstance(events[-1], PeerDown):
                    raise ConnectionError(events[-1].reason)
                await asyncio.sleep(_EVERY_S)
        connected_s = time.perf_counter() - began
        while time.perf_counter() - began < wait_s:
            connection = endpoint.connection_of(peer)
            if connection is not None and not isinstance(connection.path.way, Relayed):
                return Dialled(connected_s, time.perf_counter() - began)
            await asyncio.sleep(_EVERY_S)
        return Dialled(connected_s, None)
    finally:
        endpoint.close()
        await asyncio.sleep(0)


async def serve(relay: str, ways: Ways) -> None:
    """Until standard input ends."""
    endpoint = await at_relay(relay, ways)
    print(endpoint.peer_id, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    endpoint.close()


async def call(relay: str, ways: Ways, peer: PeerId, times: int, wait_s: float) -> None:
    """Dial so many times, each as somebody else."""
    found = [await dial(relay, ways, peer, wait_s) for _ in range(times)]
    print(json.dumps([asdict(one) for one in found]), flush=True)


def main(arguments: list[str]) -> None:
    """One or the other."""
    role, relay, ways, *others = arguments
    assert ways in ("punch", "ice")
    if role == "serve":
        asyncio.run(serve(relay, ways))  # type: ignore[arg-type]  # checked above
    else:
        peer, times, wait_s = others
        asyncio.run(call(relay, ways, PeerId.parse(peer), int(times), float(wait_s)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
