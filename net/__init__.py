"""Many machines: who a node is. Links, sessions and routes between nodes are built on it."""

from .identity import Identity, PeerId

__all__ = ["Identity", "PeerId"]
