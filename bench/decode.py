"""`hopformer bench decode`: prefill and decode of one sequence, beside the baselines and the machine's ceilings.

Everybody takes a turn in every round, in an order that moves on by one each round, after the ceilings have been
measured; rates are compared within a round only. A machine that is slow for a while is then slow for all of them.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..errors import UsageError
from ..llama.config import ModelConfig, load_config
from .baseline_llama_cpp import open_llama_cpp
from .baseline_transformers import open_transformers
from .contender import CPU, Absent, Contender, HopformerContender, OpenContender, Workload
from .contender_process import ContenderGone, open_in_process
from .kernel_ceilings import Meter, open_meter
from .machine import Machine
from .rows import Conditions, Round, Row, Sample, Software, make_rows
from .work import ModelWork, name_of_dtype

BASELINES: Mapping[str, OpenContender] = {
    "transformers": open_transformers,
    "llama.cpp": partial(open_in_process, "llama.cpp", open_llama_cpp),
}
WARM_UP_TOKENS = 2  # decode steps of the untimed turn, after a whole prompt
Progress = Callable[[int, int], None]  # parts done, parts in all


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What to measure.

    Attributes:
        folder: the model, in Hugging Face layout; a tokenizer is not needed.
        model: its name in the rows.
        dtype: of weights and activations.
        prompt_tokens, decode_tokens: of each round.
        against: names of BASELINES.
        quantize: "none", "int8" or "int4".
        device: where everybody computes.
    """

    folder: Path
    model: str
    dtype: torch.dtype
    prompt_tokens: int
    decode_tokens: int
    rounds: int
    num_threads: int
    against: tuple[str, ...]
    quantize: str = "none"
    device: torch.device = CPU

    @property
    def max_context(self) -> int:
        """The prompt, the token drawn behind it, and one more for each step."""
        return self.prompt_tokens + 1 + max(self.decode_tokens, WARM_UP_TOKENS)

    def check(self, config: ModelConfig) -> None:
        """Refuse what cannot be measured.

        Raises:
            UsageError: a number or a name out of range.
        """
        for flag, value, most in (
            ("--prompt-tokens", self.prompt_tokens, config.max_position_embeddings),
            ("--decode-tokens", self.decode_tokens, config.max_position_embeddings),
            ("--rounds", self.rounds, config.vocab_size - 1),  # each prompt begins with another token
            ("--threads", self.num_threads, 1024),
        ):
            if not 1 <= value <= most:
                raise UsageError(f"{flag} is {value}; it must be between 1 and {most}")
        unknown = next((name for name in self.against if name not in BASELINES), None)
        if unknown is not None:
            raise UsageError(f"--against {unknown!r} is unknown; name some of {', '.join(BASELINES)}, or none")
        if self.max_context > config.max_position_embeddings:
            raise UsageError(
                f"--prompt-tokens {self.prompt_tokens} and --decode-tokens {self.decode_tokens} need a context of "
                f"{self.max_context} tokens; this model has {config.max_position_embeddings}"
            )

    def conditions(self, config: ModelConfig) -> Conditions:
        """What every row says."""
        return Conditions(
            machine=Machine.here(self.device),
            model=self.model,
            shape=_describe(config),
            dtype=name_of_dtype(self.dtype),
            num_threads=self.num_threads,
            prompt_tokens=self.prompt_tokens,
            decode_tokens=self.decode_tokens,
            rounds=self.rounds,
            quantize=self.quantize,
        )


def bench_decode(plan: DecodePlan, progress: Progress | None = None) -> list[Row]:
    """Carry out ``plan``: prefill rows before decode rows, ours first.

    Raises:
        ModelError: the folder cannot be used.
        UsageError: the plan means nothing.
    """
    config = load_config(plan.folder)
    plan.check(config)
    conditions = plan.conditions(config)  # before anything runs: a commit made meanwhile is not what was measured
    total = 1 + len(plan.against) + 1 + plan.rounds
    steps = iter(range(1, total + 1))

    def advance() -> None:
        if progress is not None:
            progress(next(steps), total)

    with _threads(plan.num_threads), _opened(plan, config, advance) as (contenders, absent):
        meter = open_meter(plan.device, plan.dtype)
        prompts = _prompts(plan, config)
        prompt = next(prompts)
        for contender in tuple(contenders):
            try:
                _take_turn(contender, prompt, WARM_UP_TOKENS)
            except ContenderGone as gone:
                contenders.remove(contender)
                absent.append(Absent(contender.name, gone.reason))
        advance()
        rounds = []
        for index in range(plan.rounds):
            first = index % len(contenders)
            order = [*contenders[first:], *contenders[:first]]
            rounds.append(_run_round(meter, order, next(prompts), plan.decode_tokens))
            advance()
        software = {one.name: Software(one.version, one.weights) for one in contenders}
    return make_rows(conditions, ModelWork(config, plan.dtype), rounds, software, absent)


def _run_round(meter: Meter, order: Sequence[Contender], prompt: Sequence[int], decode_tokens: int) -> Round:
    ceilings = meter.measure()
    return Round(ceilings, {one.name: _take_turn(one, prompt, decode_tokens) for one in order})


def _take_turn(contender: Contender, prompt: Sequence[int], decode_tokens: int) -> Sample:
    contender.reset()
    start = time.perf_counter()
    contender.prefill(prompt)
    middle = time.perf_counter()
    contender.decode(decode_tokens)
    return Sample(middle - start, (time.perf_counter() - middle) / decode_tokens)


@contextmanager
def _opened(
    plan: DecodePlan, config: ModelConfig, advance: Callable[[], None]
) -> Iterator[tuple[list[Contender], list[Absent]]]:
    """Us and the baselines, loaded."""
    contenders: list[Contender] = []
    absent: list[Absent] = []
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="hopformer-bench-"))
        workload = Workload(
            plan.folder,
            config,
            plan.dtype,
            plan.max_context,
            plan.num_threads,
            Path(scratch),
            plan.quantize,
            plan.device,
        )
        for open_one in (HopformerContender.open, *(BASELINES[name] for name in plan.against)):
            one = open_one(workload)
            if isinstance(one, Absent):
                absent.append(one)
            else:
                stack.callback(one.close)
                contenders.append(one)
            advance()
        yield contenders, absent


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    """PyTorch's number of threads, for a while; it is the process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prompts(plan: DecodePlan, config: ModelConfig) -> Iterator[list[int]]:
    """Random prompts, each with another first token, so that no prefix cache knows any of it."""
    generator = torch.Generator().manual_seed(0)
    for first in range(config.vocab_size):
        rest = torch.randint(config.vocab_size, (plan.prompt_tokens - 1,), generator=generator)
        yield [first, *rest.tolist()]


def _describe(config: ModelConfig) -> str:
    """The sizes that decide about speed."""
    return (
        f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_heads} heads, "
        f"{config.num_kv_heads} KV heads of {config.head_dim}, intermediate {config.intermediate_size}, "
        f"vocabulary {config.vocab_size}"
    )
