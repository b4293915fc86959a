"""What a chat does with the nodes that compute for it."""

from types import SimpleNamespace
from typing import Any

from hopformer.cli.nodes import LocalNode, RemoteNodes
from hopformer.errors import NetworkError


def test_while_nobody_asks_anything_the_network_gets_its_turns_and_nothing_waits() -> None:
    waited: list[float] = []
    remote: Any = SimpleNamespace(node=SimpleNamespace(turn=waited.append))
    nodes = RemoteNodes(remote)
    nodes.idle()
    nodes.idle()
    LocalNode(8).idle()
    assert waited == [0.0, 0.0]


def test_a_network_that_has_ended_does_not_disturb_who_is_typing() -> None:
    def turn(timeout_s: float) -> None:
        raise NetworkError("the network's process has ended")

    remote: Any = SimpleNamespace(node=SimpleNamespace(turn=turn))
    RemoteNodes(remote).idle()
