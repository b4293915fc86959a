"""``command``: registers a function with typer whose parameters may be dataclasses of flags.

typer wants a parameter for each flag. Here a command names a group of flags by its dataclass, and typer sees the
dataclass's fields. Every command also gets the flags of LogFlags, which are obeyed before it starts, and its errors
become a line on stderr and an exit code.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import typer

from .reporting import configure_logging, report

Command = Callable[..., int]

_LOGS = "Logs"


@dataclass(frozen=True, slots=True)
class LogFlags:
    """What is written to stderr."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="Log from this level on, to stderr.", rich_help_panel=_LOGS),
    ] = "warning"
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="How a log line looks.", rich_help_panel=_LOGS)
    ] = "text"
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=_LOGS)] = False


def command(app: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Register the decorated function with ``app``. It returns its exit code."""

    def register(function: Command) -> Command:
        hints = get_type_hints(function, include_extras=True)
        groups = {key: hint for key, hint in hints.items() if is_dataclass(hint)}

        def run(**values: Any) -> None:
            logs = _take(LogFlags, values)
            arguments = {key: _take(group, values) for key, group in groups.items()}
            configure_logging(logs.log_level, logs.log_format)
            try:
                code = function(**arguments, **values)
            except (Exception, KeyboardInterrupt) as error:
                code = report(error, logs.debug)
            raise typer.Exit(code)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            group = groups.get(parameter.name)
            single = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            parameters.extend([single] if group is None else _parameters(group))
        parameters.extend(_parameters(LogFlags))
        run.__doc__ = _unwrapped(function.__doc__ or "")
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name or function.__name__)(run)
        return function

    return register


def _parameters(group: Any) -> list[inspect.Parameter]:
    """One keyword parameter for each field of a dataclass of flags."""
    hints = get_type_hints(group, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, keyword, default=_default(field), annotation=hints[field.name])
        for field in fields(group)
    ]


def _unwrapped(docstring: str) -> str:
    """The docstring with a line for each paragraph, which the terminal's width breaks again."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(docstring).split("\n\n"))


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _take(group: Any, values: dict[str, Any]) -> Any:
    """An instance of the dataclass ``group`` from its fields in ``values``, which loses them."""
    return group(**{field.name: values.pop(field.name) for field in fields(group)})
