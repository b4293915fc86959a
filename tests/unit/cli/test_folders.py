"""Where files of ours live."""

from pathlib import Path

import pytest

from hopformer.cli.folders import config_folder, network_folder, state_folder


def test_the_variables_of_the_specification_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/mine")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/mine")
    assert (config_folder(), state_folder()) == (Path("/etc/mine/hopformer"), Path("/var/mine/hopformer"))
    assert network_folder("abc") == Path("/etc/mine/hopformer/networks/abc")


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_an_empty_or_relative_variable_counts_as_not_set(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CONFIG_HOME", value)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert config_folder() == Path("/home/someone/.config/hopformer")
    assert state_folder() == Path("/home/someone/.local/state/hopformer")
