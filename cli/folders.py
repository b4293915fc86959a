"""Where a user's files of ours live, as the XDG base directory specification has it."""

import os
from pathlib import Path


def config_folder() -> Path:
    """Keys, and the networks whose authority they are."""
    return _base("XDG_CONFIG_HOME", ".config") / "hopformer"


def network_folder(network_id: object) -> Path:
    """What the authority of a network knows of it, see net/authority_files.py."""
    return config_folder() / "networks" / str(network_id)


def state_folder() -> Path:
    """What may be lost, such as the history of typed lines."""
    return _base("XDG_STATE_HOME", ".local/state") / "hopformer"


def _base(variable: str, default: str) -> Path:
    """The folder that the variable names; a relative one counts as not set, as the specification says."""
    named = Path(os.environ.get(variable, ""))
    return named if named.is_absolute() else Path.home() / default
