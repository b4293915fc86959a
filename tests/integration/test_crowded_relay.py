"""A relay that fifty peers come to, meet at, and leave, again and again: what they leave behind is nothing."""

import asyncio
import gc
import time
from collections.abc import Callable

import psutil
import pytest

from hopformer.net.announcement import Announcement
from hopformer.net.endpoint import Endpoint
from hopformer.net.identity import Identity
from hopformer.net.layer_range import LayerRange
from hopformer.net.mesh_member import MeshMember
from hopformer.net.messages import Ask, Dtype
from hopformer.net.relay_node import RelayConfig, RelayNode
from hopformer.net.switchboard import Event, Heard, PeerUp, Received, Vanished

NUM_PEERS = 50
WAIT_S = 60.0  # a handshake takes a few milliseconds, and the relay begins fifty a second
FINGERPRINT = bytes(8) + b"\x77" * 24

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Node:
    """A node that announces something, and hears what others do."""

    def __init__(self, relay: RelayNode) -> None:
        self.identity = Identity.generate()
        self.peer_id = self.identity.peer_id
        self.events: list[Event] = []
        self.endpoint = Endpoint(self.identity, None, self.events.append)
        self.mesh = MeshMember(self.endpoint, self.identity, None, b"", self.events.append)
        self.endpoint.listen(["127.0.0.1:0"])
        self.endpoint.registered = self.mesh.refresh
        self.endpoint.relays.watch()
        self.relay = f"{relay.peer_id}@{relay.addrs[0]}"
        self.endpoint.relays.keep(self.relay)
        span = LayerRange(0, 8)
        self.mesh.publish(
            Announcement(self.identity.public_bytes, 0, 60, "demo", FINGERPRINT, 8, span, True, Dtype.FLOAT32)
        )

    def num_heard(self) -> int:
        return len({one.announcement.peer for one in self.events if isinstance(one, Heard)})


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.02)


async def come_meet_and_leave(relay: RelayNode) -> None:
    nodes = [Node(relay) for _ in range(NUM_PEERS)]
    await until(lambda: relay.desk.table.num_registered == NUM_PEERS)
    await until(lambda: all(one.num_heard() == NUM_PEERS - 1 for one in nodes))
    pairs = list(zip(nodes[::2], nodes[1::2], strict=True))
    for asker, other in pairs:
        asker.endpoint.dial(other.peer_id, (other.relay,))
    await until(lambda: all(PeerUp(other.peer_id) in asker.events for asker, other in pairs))
    for asker, other in pairs:
        asker.endpoint.send(other.peer_id, Ask())
    await until(lambda: all(Received(asker.peer_id, Ask()) in other.events for asker, other in pairs))
    relay.desk.table.check_integrity()
    stays, leaves = nodes[0], nodes[1:]
    for one in leaves[:10]:  # these take their announcements back before they go
        one.mesh.publish(None)
    await until(lambda: len({one.peer for one in stays.events if isinstance(one, Vanished)}) == 10)
    assert len(relay.desk.directory.entries()) == NUM_PEERS - 10
    for one in leaves:
        one.endpoint.close()
    await until(lambda: len({one.peer for one in stays.events if isinstance(one, Vanished)}) == NUM_PEERS - 1)
    stays.endpoint.close()
    await until(lambda: relay.desk.num_connected == 0)
    relay.tick()
    table = relay.desk.table
    table.check_integrity()
    assert (table.num_registered, table.num_channels, relay.desk.directory.entries()) == (0, 0, [])


def test_fifty_peers_that_come_and_go_leave_nothing_behind() -> None:
    async def test() -> None:
        relay = RelayNode(Identity.generate(), RelayConfig(("127.0.0.1:0",)))
        task = asyncio.create_task(relay.run(lambda: False))
        try:
            await come_meet_and_leave(relay)
            gc.collect()
            process = psutil.Process()
            before = process.memory_info().rss, process.num_fds(), len(asyncio.all_tasks())
            for _ in range(3):
                await come_meet_and_leave(relay)
            gc.collect()
            assert process.num_fds() == before[1] and len(asyncio.all_tasks()) == before[2]
            assert process.memory_info().rss - before[0] < 24 << 20  # of 150 more nodes, in this very process
        finally:
            task.cancel()
            relay.close()

    asyncio.run(test())
