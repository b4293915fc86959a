"""``command``: registers a function with typer whose parameters may be dataclasses of flags.

typer wants a parameter for each flag. Here a command names a group of flags by its dataclass, and typer sees the
dataclass's fields. Every command also gets the flags of LogFlags, which are obeyed before it starts, and its errors
become a line on stderr and an exit code.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import typer

from ..errors import UsageError
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
        app.command(name or function.__name__)(_runner(function))
        return function

    return register


def default_command(app: typer.Typer) -> Callable[[Command], Command]:
    """Register the decorated function as what ``app`` does where none of its commands is named."""

    def register(function: Command) -> Command:
        run = _runner(function)

        def run_unless_named(context: typer.Context, **values: Any) -> None:
            if context.invoked_subcommand is None:
                run(**values)
            elif given := _given(context, values):
                flag, name = "--" + given[0].replace("_", "-"), context.invoked_subcommand
                error = UsageError(f"{flag} before {name} changes nothing; the flags of {name} go after it")
                raise typer.Exit(report(error, debug=False))

        own = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        _dress(run_unless_named, run.__doc__, [own, *inspect.signature(run).parameters.values()])
        app.callback(invoke_without_command=True)(run_unless_named)
        return function

    return register


def _runner(function: Command) -> Callable[..., None]:
    """``function`` as typer takes it: a parameter for each flag, and the exit code as an exception."""
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
    _dress(run, _unwrapped(function.__doc__ or ""), [*parameters, *_parameters(LogFlags)])
    return run


def _dress(run: Callable[..., None], doc: str | None, parameters: list[inspect.Parameter]) -> None:
    """Give ``run`` what typer reads of a function."""
    run.__doc__ = doc
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that were flags on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


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
