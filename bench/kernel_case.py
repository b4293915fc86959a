"""KernelCase: one kernel at one shape, as data: how its tensors are made, who runs on them, and how much work it is.

A case says nothing about timing, and timing (kernel_timing.py) nothing about kernels. Cases are made by
kernel_cases_*.py from a Setting, and listed by kernel_cases.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .contender import Absent
from .random_model import find_shape


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The sizes of one layer of a published model, as in its config.json."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float

    @classmethod
    def of(cls, model: str) -> "LayerShape":
        """That of a model of `random_model.SHAPES`.

        Raises:
            UsageError: there is none of that name.
        """
        fields = find_shape(model)
        return cls(
            fields["hidden_size"],
            fields["intermediate_size"],
            fields["num_attention_heads"],
            fields["num_key_value_heads"],
            fields["head_dim"],
            fields["vocab_size"],
            fields["rms_norm_eps"],
        )

    @property
    def heads(self) -> str:
        """The heads in words."""
        return f"{self.num_heads} heads, {self.num_kv_heads} KV heads of {self.head_dim}"


@dataclass(frozen=True, slots=True)
class CaseSizes:
    """How large the cases are; what suits a GPU takes minutes on a CPU.

    Attributes:
        decode: (sequences, tokens of each) of the even decode batches.
        uneven: (sequences, tokens of all together) of the uneven one.
        prefill_tokens: of one prompt.
        step_tokens: of a prefill step, for what works row by row.
        matmul_rows: tokens that share one pass over a weight.
        sample_rows: sequences whose next tokens are drawn.
        context_batch, contexts: sequences, and tokens of each, of the decode-by-context curve.
    """

    decode: tuple[tuple[int, int], ...]
    uneven: tuple[int, int]
    prefill_tokens: tuple[int, ...]
    step_tokens: int
    matmul_rows: tuple[int, ...]
    sample_rows: int
    context_batch: int
    contexts: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384, 32768)


# The cases of the project's targets (B16 x 4k even, 262k tokens very uneven, B1 x 32k and 8k; 8k and 16k of prompt)
GPU_SIZES = CaseSizes(((16, 4096), (1, 32768), (1, 8192)), (64, 262144), (8192, 16384), 4096, (1, 4, 16, 64), 64, 16)
# What two cores measure in about two minutes, each case still larger than their caches or as long as a chat
CPU_SIZES = CaseSizes(((16, 1024), (1, 8192), (1, 2048)), (16, 16384), (512, 2048), 512, (1, 4, 16, 64), 16, 1)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and in what the cases of one model run.

    Attributes:
        model: a name of `random_model.SHAPES`.
        layer: its sizes.
        dtype: of activations, weights, keys and values, unless a case says otherwise.
    """

    model: str
    layer: LayerShape
    dtype: torch.dtype
    device: torch.device
    sizes: CaseSizes

    @property
    def dtype_name(self) -> str:
        """As rows say it: "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_gpu(self) -> bool:
        """Whether the kernels are Triton's, on a GPU."""
        return self.device.type == "cuda"

    def random(self, *shape: int, std: float = 1.0, seed: int = 0) -> torch.Tensor:
        """Normal numbers of ``shape``, in the setting's dtype, on its device; the same ones every time."""
        generator = torch.Generator(self.device).manual_seed(seed)
        empty = torch.empty(shape, dtype=self.dtype, device=self.device)
        return empty.normal_(0.0, std, generator=generator)


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to carry out a case.

    Attributes:
        name: "hopformer" for ours.
        run: what is timed; its tensors are there already.
        as_ours: its result in the layout of ours.
        tolerance: how far, as a relative Frobenius norm, its result may lie from ours; None: not comparable, as draws.
    """

    name: str
    run: Callable[[], Any]
    as_ours: Callable[[Any], torch.Tensor] = field(default=lambda result: result)
    tolerance: float | None = 0.02  # two bf16 results of one formula, 2^-9 a rounding, a few roundings each


@dataclass(frozen=True, slots=True)
class Built:
    """A case with its tensors.

    Attributes:
        make_baselines: the baselines, each run once, or why they are absent; they may need more memory than ours.
    """

    ours: Implementation
    make_baselines: Callable[[], Sequence[Implementation | Absent]]


@dataclass(frozen=True, slots=True)
class Work:
    """What a case must move and compute at least, whoever carries it out.

    Attributes:
        num_bytes: read and written, each tensor once.
        num_operations: additions and multiplications.
    """

    num_bytes: int
    num_operations: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """Which row of the launch configurations a case speaks for.

    Attributes:
        table: the kernel's name there.
        conditions: what the row is for; (name, value) pairs.
    """

    table: str
    conditions: tuple[tuple[str, str | int], ...]


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One kernel at one shape.

    Attributes:
        kernel: its name on the command line.
        name: the case's, unique among its kernel's.
        shape: the sizes in words.
        dtype: in words; of keys and values or of the weight, where it differs from the rest.
        build: makes the tensors; called once, right before the case is timed.
        context: tokens of each sequence, for a point of the decode-by-context curve; else None.
        tuning: for a sweep; None where there is nothing to choose.
    """

    kernel: str
    name: str
    model: str
    shape: str
    dtype: str
    work: Work
    build: Callable[[], Built]
    context: int | None = None
    tuning: Tuning | None = None


def thousands(count: int) -> str:
    """4096 -> "4k"; what is no multiple of 1024 as it is."""
    return str(count) if count % 1024 else f"{count // 1024}k"
