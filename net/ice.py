"""Ice: ways found by ICE (RFC 8445), which other stacks speak as well. aioice does it; this is the shell around it.

    offer     over a connection that a relay carries, the end with the smaller id names the sockets that it has opened,
              and where the relay sees them (STUN)
    answer    the other end does the same
    checks    of all pairs of sockets, until one is found or CONNECT_S are over
    way       datagrams go through that pair until it is found dead, or the peer is gone

It is a second provider of ways beside the punching of paths.py, which asks on the node's own socket; the path takes
whichever is proven first, or is faster. What has failed is tried again after AGAIN_S. Not here: which one is taken.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import aioice

from ..errors import NetworkError
from .carrier import Carrier, Connection
from .identity import PeerId
from .relay_messages import IceOffer, RelayMessage
from .relays import Relays
from .udp import split_host_port
from .ways import Addr, Ice, Relayed, is_loopback, offered_addr
from .wire import MAX_CANDIDATES

logger = logging.getLogger(__name__)

PRIVATE_NAMES = ("_nominated",)  # of aioice.Connection: which pair was chosen is told by nothing public
CONNECT_S = 4.0  # of an attempt; aioice's own timers give up after 20 to 30 s
GATHER_S = 1  # of it, that the relay's answer is waited for: two questions (RFC 8489, section 6.2.1)
AGAIN_S = 20.0  # until another attempt; as seldom as punching that has failed, see paths.MAX_REPUNCH_S
MAX_AGENTS = 64  # at a time: each has a socket for each of this node's addresses
MAX_HOSTS = 4  # addresses of this node, of which each is asked for with each of the peer's
MAX_UNSENT_BYTES = 1 << 20  # that the kernel would not take yet; beyond it datagrams are lost, which QUIC repairs


class IceClient(Protocol):
    """What IceAgents needs of the node that it belongs to."""

    @property
    def peer_id(self) -> PeerId:
        """This node."""
        ...

    @property
    def addrs(self) -> tuple[str, ...]:
        """HOST:PORT each, where it listens."""
        ...

    def send_message(self, peer: PeerId, message: RelayMessage) -> None:
        """To a peer that is connected."""
        ...

    def connection_of(self, peer: PeerId) -> Connection | None:
        """With a peer that is let in."""
        ...


class _Agent(aioice.Connection):
    """aioice's part of one attempt, with this node's addresses for all of the machine's, and without its queue."""

    def __init__(self, is_controlling: bool, hosts: Sequence[str], stun_server: tuple[str, int] | None) -> None:
        super().__init__(ice_controlling=is_controlling, stun_server=stun_server)
        self._hosts = list(hosts)
        self._pair: Any = None
        self.take: Callable[[bytes], None] = lambda _: None

    async def get_component_candidates(
        self, component: int, addresses: list[str], timeout: int = GATHER_S
    ) -> list[aioice.Candidate]:
        """See aioice."""
        return await super().get_component_candidates(component, self._hosts, GATHER_S)

    def data_received(self, data: bytes, component: int) -> None:
        """See aioice, whose queue would have no end."""
        self.take(data)

    def settle(self) -> Addr:
        """Keep to the pair that was chosen; where its other end is."""
        self._pair = self._nominated[1]
        addr: Addr = self._pair.remote_addr
        return addr if ":" not in addr[0] else (*addr, 0, 0)

    def send_now(self, datagram: bytes) -> None:
        """Through that pair, if the kernel takes it."""
        transport = self._pair.protocol.transport
        if not transport.is_closing() and transport.get_write_buffer_size() < MAX_UNSENT_BYTES:
            transport.sendto(datagram, self._pair.remote_addr)


class _Attempt:
    """An agent, what it waits for, and the task that it lives in."""

    def __init__(self, agent: _Agent, answer: "asyncio.Future[IceOffer]") -> None:
        self.agent = agent
        self.answer = answer
        self.task: asyncio.Task[None] | None = None


class IceAgents:
    """Owner of a node's agents, one for each peer at most."""

    def __init__(self, client: IceClient, carrier: Carrier, relays: Relays) -> None:
        self._client = client
        self._carrier = carrier
        self._relays = relays
        self._own = client.peer_id
        self._loop = asyncio.get_running_loop()
        self._attempts: dict[PeerId, _Attempt] = {}
        self._later: dict[PeerId, asyncio.TimerHandle] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()  # one for each agent, until it has given its sockets back

    def begin(self, peer: PeerId) -> None:
        """A relay leads to a peer, or this node is seen elsewhere: offer, where that is this end's part."""
        if self._own < peer and peer not in self._attempts and peer not in self._later:
            self._start(peer, None)

    def take(self, peer: PeerId, offer: IceOffer) -> None:
        """A peer offers, or answers."""
        attempt = self._attempts.get(peer)
        if offer.is_answer != (self._own < peer):
            logger.info("peer=%s: an offer is the part of the one with the smaller id", peer)
        elif offer.is_answer:
            if attempt is not None and not attempt.answer.done():
                attempt.answer.set_result(offer)
        else:
            self.end(peer)
            self._start(peer, offer)

    def end(self, peer: PeerId) -> None:
        """A peer is gone, or begins anew."""
        timer = self._later.pop(peer, None)
        if timer is not None:
            timer.cancel()
        attempt = self._attempts.pop(peer, None)
        if attempt is not None and attempt.task is not None:
            attempt.task.cancel()

    def close(self) -> None:
        """End all of them."""
        for peer in (*self._attempts, *self._later):
            self.end(peer)

    # ---- an attempt

    def _start(self, peer: PeerId, offer: IceOffer | None) -> None:
        channels = self._relays.ways_to(peer)
        if not channels or len(self._tasks) >= MAX_AGENTS:
            return
        agent = _Agent(self._own < peer, _hosts(self._client.addrs), _stun_server(channels))
        attempt = self._attempts[peer] = _Attempt(agent, self._loop.create_future())
        attempt.task = self._loop.create_task(self._live(peer, attempt, offer))
        self._tasks.add(attempt.task)
        attempt.task.add_done_callback(self._tasks.discard)

    async def _live(self, peer: PeerId, attempt: _Attempt, offer: IceOffer | None) -> None:
        """From the first question to the last datagram."""
        agent = attempt.agent
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._connect(peer, attempt, offer)
            way = Ice(agent.settle(), next(self._numbers))
            agent.take = lambda datagram: self._carrier.take_ice(datagram, way)
            self._carrier.open_ice(way, agent.send_now)
            connection = self._client.connection_of(peer)
            if connection is not None:
                self._carrier.offer(connection, (way,))
            try:
                await agent.get_event()  # the only one: that it is closed, as nobody answers any more
            finally:
                self._carrier.close_ice(way)
                if connection is not None and connection is self._client.connection_of(peer):
                    self._carrier.lose(connection, way)
        except (TimeoutError, OSError, NetworkError) as error:  # aioice's are ConnectionError
            logger.info("peer=%s: no pair of sockets was found: %s", peer, error or f"not within {CONNECT_S:g} s")
        finally:
            await agent.close()
            if self._attempts.get(peer) is attempt:
                del self._attempts[peer]
                if attempt.answer.done():  # else it does not speak ICE, and is asked when a relay leads to it anew
                    self._later[peer] = self._loop.call_later(AGAIN_S, self._again, peer)

    async def _connect(self, peer: PeerId, attempt: _Attempt, offer: IceOffer | None) -> None:
        agent = attempt.agent
        await agent.gather_candidates()
        own = tuple(one.to_sdp() for one in agent.local_candidates)[:MAX_CANDIDATES]
        self._client.send_message(peer, IceOffer(offer is not None, agent.local_username, agent.local_password, own))
        theirs = offer or await attempt.answer
        loopback = any(map(is_loopback, self._relays.ways_to(peer)))
        agent.remote_username, agent.remote_password = theirs.ufrag, theirs.pwd
        for candidate in _candidates(theirs.candidates, loopback=loopback):
            await agent.add_remote_candidate(candidate)
        await agent.add_remote_candidate(None)
        await agent.connect()

    def _again(self, peer: PeerId) -> None:
        self._later.pop(peer, None)
        self.begin(peer)


def _hosts(addrs: Iterable[str]) -> list[str]:
    """This node's own addresses; those of loopback, which no answer of a relay reaches, only if there are no others."""
    ways = [Ice(split_host_port(addr), 0) for addr in addrs if "%" not in addr]
    hosts = [way.addr[0] for way in ways if not is_loopback(way)] or [way.addr[0] for way in ways]
    return list(dict.fromkeys(hosts))[:MAX_HOSTS]


def _candidates(lines: Iterable[str], *, loopback: bool) -> list[aioice.Candidate]:
    """Those of a peer's sockets that may be asked; names are never looked up, see ways.offered_addr.

    Raises:
        NetworkError: a line is none.
    """
    found = []
    for line in lines:
        try:
            one = aioice.Candidate.from_sdp(line)
        except ValueError as error:
            raise NetworkError(f"{line[:80]!r} is no candidate: {error}") from error
        addr = offered_addr(f"[{one.host}]:{one.port}", loopback=loopback)
        if addr is not None and one.component == 1 and one.transport.lower() == "udp":
            found.append(one)
    return found


def _stun_server(channels: Sequence[Relayed]) -> tuple[str, int] | None:
    """A relay by IPv4, which is all that aioice asks by."""
    for way in channels:
        host = way.addr[0].removeprefix("::ffff:")
        if ":" not in host:
            return host, way.addr[1]
    return None
