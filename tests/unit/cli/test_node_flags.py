"""Whom a node lets in."""

import pytest

from hopformer.cli.node_flags import NodeFlags
from hopformer.errors import UsageError
from hopformer.net.identity import PeerId

PEER = PeerId(b"p" * 22)


@pytest.mark.parametrize("listen", [[], ["127.0.0.1:0"], ["127.9.9.9:1", "[::1]:0"], ["localhost:5"]])
def test_whoever_is_on_this_machine_may_connect_to_it(listen: list[str]) -> None:
    assert NodeFlags(listen=listen).allowed() is None


@pytest.mark.parametrize("listen", [["0.0.0.0:0"], ["[::]:0"], ["192.168.1.7:1"], ["127.0.0.1:0", "example.org:1"]])
def test_others_must_be_named_or_everybody_let_in(listen: list[str]) -> None:
    with pytest.raises(UsageError, match=r"can be reached by others.*--allow any"):
        NodeFlags(listen=listen).allowed()
    assert NodeFlags(listen=listen, allow=[str(PEER)]).allowed() == [PEER]
    assert NodeFlags(listen=listen, allow=[str(PEER), "any"]).allowed() is None


def test_a_mistyped_peer_id_or_address_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"--allow: .*it has 39 characters"):
        NodeFlags(allow=[str(PEER)[:-1]]).allowed()
    with pytest.raises(UsageError, match=r"--listen: '127.0.0.1' is no address"):
        NodeFlags(listen=["127.0.0.1"], allow=["any"]).allowed()


def test_nothing_given_listens_on_this_machine_and_takes_exact_rows() -> None:
    flags = NodeFlags()
    assert (flags.listen, flags.wire_dtype, flags.metrics) == (["127.0.0.1:0"], "exact", None)
