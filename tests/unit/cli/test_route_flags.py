"""Flags of commands that may compute over peers."""

from pathlib import Path

import pytest

from hopformer.cli.route_flags import RouteFlags
from hopformer.errors import UsageError
from hopformer.net.messages import Codec

MAP = Path("map.json")


@pytest.mark.parametrize(
    "flags", [RouteFlags(), RouteFlags(MAP, 0.5, Path("key.pem"), "int8"), RouteFlags(reroute_timeout=86400)]
)
def test_what_means_something_passes(flags: RouteFlags) -> None:
    flags.check()


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (RouteFlags(MAP, 0), "--reroute-timeout is 0"),
        (RouteFlags(MAP, float("nan")), "--reroute-timeout is nan"),
        (RouteFlags(MAP, 86401), "--reroute-timeout is 86401"),
        (RouteFlags(identity=Path("key.pem")), "--identity changes nothing"),
        (RouteFlags(wire_dtype="int8"), "--wire-dtype changes nothing"),
        (RouteFlags(hand_head=True), "--hand-head changes nothing"),
    ],
)
def test_what_does_not_is_refused(flags: RouteFlags, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        flags.check()


def test_a_node_that_serves_has_a_key_without_a_map() -> None:
    RouteFlags(identity=Path("key.pem")).check(has_peers=True)
    with pytest.raises(UsageError, match="--hand-head changes nothing"):
        RouteFlags(hand_head=True).check(has_peers=True)


def test_the_codec_to_ask_for_is_the_last() -> None:
    assert RouteFlags().codecs() == (Codec.EXACT,)
    assert RouteFlags(MAP, wire_dtype="int8").codecs() == (Codec.EXACT, Codec.INT8)
