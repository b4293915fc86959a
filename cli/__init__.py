"""The command line: parses, configures logging, prints, sets exit codes. Only this room reads the environment.

Commands import what they need when they run, so that ``hopformer --help`` and ``hopformer id`` never wait for torch.
"""

from .app import main

__all__ = ["main"]
