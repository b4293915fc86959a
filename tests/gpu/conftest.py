"""Tests that need a GPU: each file marks itself with ``gpu`` and takes ``device``, which skips where there is none."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return torch.device("cuda", 0)
