"""AttentionPlan: what it refuses, and that a schedule is made once."""

import pytest
import torch

from hopformer.errors import KernelError
from hopformer.kernels import AttentionPlan, plan_attention


def plan(**changed: torch.Tensor) -> AttentionPlan:
    """A plan for two sequences, with some of its tensors replaced."""
    tensors = {
        "block_table": torch.zeros(2, 4, dtype=torch.int32),
        "seq_lens": torch.ones(2, dtype=torch.int32),
        "cu_seqlens_q": torch.arange(3, dtype=torch.int32),
    } | changed
    return plan_attention(**tensors, page_size=16)


def test_a_schedule_is_made_once_for_each_key() -> None:
    made: list[str] = []

    def build(name: str) -> str:
        made.append(name)
        return name

    shared = plan()
    for _layer in range(3):
        assert shared.schedule(("cpu", 0), lambda: build("full")) == "full"
        assert shared.schedule(("cpu", 33), lambda: build("windowed")) == "windowed"
    assert made == ["full", "windowed"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_table": torch.zeros(3, 4, dtype=torch.int32)}, r"block_table torch.int32 \[3, 4\]"),
        ({"block_table": torch.zeros(8, dtype=torch.int32)}, r"block_table torch.int32 \[8\]"),
        ({"seq_lens": torch.ones(2, dtype=torch.int64)}, "seq_lens torch.int64"),
        ({"cu_seqlens_q": torch.arange(2, dtype=torch.int32)}, r"cu_seqlens_q torch.int32 \[2\]"),
    ],
)
def test_index_tensors_that_do_not_belong_together_are_refused(changed: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        plan(**changed)


def test_a_plan_fits_only_a_batch_of_its_shape() -> None:
    made = plan()
    made.check_matches(torch.zeros(2, 4, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), 16)
    with pytest.raises(KernelError, match="pages of 32"):
        made.check_matches(torch.zeros(2, 4, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), 32)
    with pytest.raises(KernelError, match=r"cu_seqlens_q \[4\]"):
        made.check_matches(torch.zeros(2, 4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32), 16)
