"""Tests that need a GPU: each file marks itself with ``gpu`` and takes ``device``, which skips where there is none."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return torch.device("cuda", 0)


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Make torch.empty return NaN, so that an output or a workspace that is read before it is written shows.

    It is one of torch's deterministic ways. The others are wished for only: a cumsum on a GPU, which every plan has, is
    none of them, and says so in a warning, which these tests ignore.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
