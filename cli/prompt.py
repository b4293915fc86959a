"""Where the prompt of ``hopformer generate`` comes from."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from ..errors import UsageError
from .options import parse_ids

_PROMPT = "Prompt: one of these, or else stdin"


@dataclass(frozen=True, slots=True)
class PromptFlags:
    """What to answer."""

    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The prompt.", rich_help_panel=_PROMPT)] = None
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file that holds the prompt.", rich_help_panel=_PROMPT)
    ] = None
    prompt_ids: Annotated[
        str | None,
        typer.Option(metavar="1,2,3", help="The prompt as token ids, taken as they are.", rich_help_panel=_PROMPT),
    ] = None
    raw: Annotated[
        bool, typer.Option("--raw", help="Take the text as it is, without a chat template.", rich_help_panel=_PROMPT)
    ] = False
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the chat template's system message says.", rich_help_panel=_PROMPT),
    ] = None

    def read(self) -> "Prompt":
        """The prompt, from whichever source was named.

        Raises:
            UsageError: two sources, none, an empty one, one that cannot be read, or flags that exclude each other.
        """
        sources = {"--prompt": self.prompt, "--prompt-file": self.prompt_file, "--prompt-ids": self.prompt_ids}
        named = [flag for flag, value in sources.items() if value is not None]
        if len(named) > 1:
            raise UsageError(f"{' and '.join(named)} exclude each other; pass one of them")
        untemplated = "--prompt-ids" if self.prompt_ids is not None else "--raw" if self.raw else None
        if untemplated and self.system is not None:
            raise UsageError(f"--system belongs to a chat template, and {untemplated} uses none; drop one of them")
        if self.prompt_ids is not None:
            return Prompt(token_ids=parse_ids(self.prompt_ids, "--prompt-ids"))
        text = self._text()
        if not text.strip() and not (self.raw and text):
            raise UsageError(f"the prompt from {named[0] if named else 'stdin'} is empty")
        return Prompt(text=text, raw=self.raw, system=self.system)

    def _text(self) -> str:
        if self.prompt is not None:
            return self.prompt
        if self.prompt_file is not None:
            try:
                with open(self.prompt_file, "rb") as file:
                    return self._decoded(file, str(self.prompt_file))
            except OSError as error:
                raise UsageError(f"--prompt-file {self.prompt_file} cannot be read: {error.strerror}") from error
        if sys.stdin.isatty():
            raise UsageError("there is no prompt; pass --prompt, --prompt-file or --prompt-ids, or pipe text in")
        return self._decoded(sys.stdin.buffer, "stdin")

    def _decoded(self, file: BinaryIO, name: str) -> str:
        """The file's text; with a chat template without the line break that every text file ends with."""
        try:
            text = file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"the prompt in {name} is not UTF-8 text: see its byte {error.start}") from error
        return text if self.raw else text.removesuffix("\n").removesuffix("\r")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as text, or as token ids."""

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    raw: bool = False
    system: str | None = None

    @property
    def templated(self) -> bool:
        """Whether a chat template is put around it."""
        return self.token_ids is None and not self.raw
