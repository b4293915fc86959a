"""Flags of a chat that serves at the same time."""

import pytest

from hopformer.cli.serve_beside_flags import ServeBesideFlags
from hopformer.errors import UsageError


def test_without_serve_nothing_is_asked_for() -> None:
    ServeBesideFlags().check()


def test_where_to_listen_is_said_or_this_machine() -> None:
    assert ServeBesideFlags("0:4").node().listen == ["127.0.0.1:0"]
    assert ServeBesideFlags("0:4").node(["0.0.0.0:0"]).listen == ["0.0.0.0:0"]
    assert ServeBesideFlags("0:4", ["127.0.0.1:9"]).node(["0.0.0.0:0"]).listen == ["127.0.0.1:9"]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (ServeBesideFlags("0-4"), "0-4"),
        (ServeBesideFlags(listen=["127.0.0.1:0"]), "--listen changes nothing where nothing is served"),
        (ServeBesideFlags(allow=["any"]), "--allow changes nothing where nothing is served"),
        (ServeBesideFlags("0:4", ["0.0.0.0:0"]), "at 0.0.0.0:0 others can connect"),
    ],
)
def test_what_means_nothing_is_refused(flags: ServeBesideFlags, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        flags.check()
