"""From what the user calls a model to one that answers, with progress on stderr."""

import time
from pathlib import Path

from ..llama.hub import resolve_model
from ..llama.load import LoadedModel, LoadOptions, load
from .progress import download_bars, loading_bar


def open_model(reference: str, options: LoadOptions) -> tuple[LoadedModel, float]:
    """Find, fetch if need be, and load a model; returns it and the seconds that loading took, without the fetching.

    Raises:
        HubError: it cannot be found or fetched.
        ModelError: its folder cannot be used.
        DeviceError: this machine lacks what it needs.
    """
    folder = fetch(reference)
    start = time.perf_counter()
    with loading_bar(f"loading {reference}") as progress:
        model = load(folder, options, progress)
    return model, time.perf_counter() - start


def fetch(reference: str, layers: tuple[int, int] | None = None, ends: bool = False) -> Path:
    """The folder of a model, or of its span ``layers``, fetched if it is a hub id; ``ends`` as in resolve_model.

    Raises:
        HubError: it cannot be found or fetched.
    """
    with download_bars() as progress:
        return resolve_model(reference, layers=layers, ends=ends, progress=progress)
