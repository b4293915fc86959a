"""Flags that several commands share, as dataclasses, and what they mean to the rooms below."""

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError

if TYPE_CHECKING:  # at run time these bring torch along, so they are imported where they are needed
    from ..llama.config import GenerationDefaults
    from ..llama.load import LoadOptions
    from ..llama.sampling import SamplingParams

log = logging.getLogger(__name__)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder in Hugging Face layout, a hub id as org/name or org/name@revision, or demo: the bundled model, "
        "which is the default.",
        show_default=False,
    ),
]

_MODEL = "Model"
_SAMPLING = "Sampling"
_STOPPING = "Length and stops"
_OUTPUT = "Output"


@dataclass(frozen=True, slots=True)
class LoadFlags:
    """How a model is loaded."""

    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="auto, which is a GPU or else the CPU, cpu, cuda or cuda:N.", rich_help_panel=_MODEL
        ),
    ] = "auto"
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="auto, which is the model's own, bfloat16, float16 or float32.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto"
    max_context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens that a conversation may have; the model's limit, at most 8192, if not given.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A built-in chat template, such as chatml, for the model's own.",
            rich_help_panel=_MODEL,
        ),
    ] = None

    kv_dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Of keys and values: auto, which is the model's own, int8 or fp8; either halves their memory.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto"
    quantize: Annotated[
        str,
        typer.Option(
            metavar="none|int8|int4",
            help="Round the weights while loading: fewer bytes to read and to hold, at some loss.",
            rich_help_panel=_MODEL,
        ),
    ] = "none"
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            " /--no-cuda-graphs",
            help="Do not capture decode steps on a GPU: a quicker start, slower answers.",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = True

    def options(self) -> "LoadOptions":
        """The same for llama/load.py."""
        from ..llama.load import LoadOptions

        return LoadOptions(
            self.device,
            self.dtype,
            self.max_context,
            self.template,
            kv_dtype=self.kv_dtype,
            cuda_graphs=self.cuda_graphs,
            quantize=self.quantize,
        )


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """How tokens are picked. What is not given is the model's generation_config.json's word, and greedy without one."""

    temperature: Annotated[float | None, typer.Option(metavar="T", help="0 is greedy.", rich_help_panel=_SAMPLING)] = (
        None
    )
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Pick among the K likeliest; 0 is all.", rich_help_panel=_SAMPLING)
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Pick among the likeliest that reach P together.", rich_help_panel=_SAMPLING),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Pick among those at least P times as likely as the likeliest.", rich_help_panel=_SAMPLING
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(metavar="R", help="Above 1 makes tokens that occurred less likely.", rich_help_panel=_SAMPLING),
    ] = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="Same seed, same text.", rich_help_panel=_SAMPLING)] = (
        None
    )

    def params(self, defaults: "GenerationDefaults", logprobs: int = 0) -> "SamplingParams":
        """What was given, over what the model recommends, over greedy.

        Raises:
            RequestError: a value is out of its range.
        """
        from ..llama.sampling import SamplingParams

        recommended = SamplingParams(repetition_penalty=defaults.repetition_penalty)
        if defaults.do_sample:
            recommended = replace(
                recommended,
                temperature=defaults.temperature,
                top_k=defaults.top_k,
                top_p=defaults.top_p,
                min_p=defaults.min_p,
            )
        given = {name: getattr(self, name) for name in SamplingFlags.__slots__ if getattr(self, name) is not None}
        params = replace(recommended, **given, logprobs=logprobs)
        idle = ["--" + name.replace("_", "-") for name in ("top_k", "top_p", "min_p") if name in given]
        if params.temperature == 0.0 and self.temperature is None and idle:
            log.warning("%s changes nothing as long as decoding is greedy; pass --temperature too", ", ".join(idle))
        return params


@dataclass(frozen=True, slots=True)
class StopFlags:
    """Where an answer ends, other than where the model ends it."""

    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens in an answer at most.", rich_help_panel=_STOPPING)
    ] = None
    stop: Annotated[
        list[str],
        typer.Option(metavar="TEXT", help="End before this text; may be repeated.", rich_help_panel=_STOPPING),
    ] = field(default_factory=list)
    stop_ids: Annotated[
        list[str],
        typer.Option(
            metavar="1,2,3", help="End before this sequence of token ids; may be repeated.", rich_help_panel=_STOPPING
        ),
    ] = field(default_factory=list)

    def limited(self, max_tokens: int) -> "StopFlags":
        """The same with a length for answers of which none was given."""
        return self if self.max_tokens is not None else replace(self, max_tokens=max_tokens)

    def check(self) -> None:
        """Refuse what cannot mean anything, before a model is loaded for it.

        Raises:
            UsageError: a value is out of its range.
        """
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"--max-tokens is {self.max_tokens}; it must be 1 or more")
        if "" in self.stop:
            raise UsageError("--stop is empty, which would end every answer before it begins")
        self.stop_sequences()

    def stop_sequences(self) -> tuple[tuple[int, ...], ...]:
        """The token-id sequences of every --stop-ids.

        Raises:
            UsageError: one is not a list of ids.
        """
        return tuple(parse_ids(text, "--stop-ids") for text in self.stop_ids)


@dataclass(frozen=True, slots=True)
class OutputFlags:
    """What generate prints, and whether it lets the model end its answer."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when the answer is done.", rich_help_panel=_OUTPUT)
    ] = False
    logprobs: Annotated[
        int | None,
        typer.Option(metavar="K", help="With --json: the K likeliest tokens of each step.", rich_help_panel=_OUTPUT),
    ] = None
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos", help="Go on to --max-tokens where the model would end.", rich_help_panel=_STOPPING
        ),
    ] = False

    def check(self) -> None:
        """Refuse what cannot mean anything.

        Raises:
            UsageError: --logprobs without --json, or none of them asked for.
        """
        if self.logprobs is not None and not self.json:
            raise UsageError("--logprobs has no place in plain text; pass --json too")
        if self.logprobs is not None and self.logprobs < 1:
            raise UsageError(f"--logprobs is {self.logprobs}; it must be 1 or more")


def parse_ids(text: str, flag: str) -> tuple[int, ...]:
    """The token ids in ``text``, which ``flag`` was given.

    Raises:
        UsageError: it is not a comma-separated list of numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        raise UsageError(f"{flag} {text[:40]!r} is no list of token ids; write it as 1,2,3")
    return tuple(int(part) for part in parts)


def parse_layers(text: str) -> tuple[int, int]:
    """The half-open range of layers that --layers was given, such as "4:8".

    Raises:
        UsageError: it is not one.
    """
    start, colon, end = text.partition(":")
    if not (colon and start.isascii() and start.isdigit() and end.isascii() and end.isdigit()) or int(start) >= int(
        end
    ):
        raise UsageError(f"--layers {text!r} is no range of layers; write 4:8 for the layers 4, 5, 6 and 7")
    return int(start), int(end)
