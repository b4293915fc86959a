"""``hopformer chat``: loads a model and talks to whoever is there, a person at a terminal or a pipe."""

import sys

from ..errors import HopformerError, RequestError
from .answer import Answer, AnswerSettings
from .chat_commands import Command, Message, Mistake, read_line
from .conversation import Conversation
from .folders import state_folder
from .interrupts import interrupt_noted, terminate_unwinds
from .mesh_flags import MeshFlags
from .nodes import open_nodes
from .options import LoadFlags, SamplingFlags, StopFlags
from .reporting import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, print_error
from .route_flags import RouteFlags
from .serve_beside_flags import ServeBesideFlags
from .terminal import Terminal

_LEAVING = ("exit", "quit")


def chat(
    reference: str,
    system: str | None,
    load: LoadFlags,
    routes: RouteFlags,
    mesh: MeshFlags,
    sampling: SamplingFlags,
    stops: StopFlags,
    serving: ServeBesideFlags | None = None,
) -> int:
    """Chat until the user leaves or stdin ends; returns the exit code.

    Raises:
        HopformerError: the model cannot be loaded, or a flag means nothing.
    """
    stops.check()
    with open_nodes(reference, load, routes, mesh, serving) as (model, _, nodes):
        settings = AnswerSettings.of(model, sampling.params(model.defaults), stops)
        conversation = Conversation(reference, model, settings, system, nodes)
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return chat_over_pipes(conversation)
        with terminate_unwinds():
            return chat_at_terminal(conversation, Terminal(state_folder() / "chat_history"))


def chat_at_terminal(conversation: Conversation, terminal: Terminal) -> int:
    """Talk to a person."""
    terminal.note(conversation.greeting())
    terminal.note("help lists the commands, Ctrl-D leaves; Space, Esc or Ctrl-C stops an answer.")
    while (line := terminal.ask(conversation.idle)) is not None:
        try:
            match read_line(line):
                case Command(name) if name in _LEAVING:
                    break
                case Command() as command:
                    terminal.note(conversation.obey(command))
                case Mistake(advice):
                    terminal.note(advice)
                case Message(text):
                    _reply_at_terminal(conversation, terminal, text)
        except HopformerError as error:
            print_error(str(error))
    return EXIT_DONE


def _reply_at_terminal(conversation: Conversation, terminal: Terminal, text: str) -> None:
    with terminal.keys() as keys, interrupt_noted() as interrupt:
        answer = conversation.reply(text, terminal.write, lambda: interrupt() or keys())
    terminal.end_line()
    if answer.error is not None:
        print_error(str(answer.error))
    if warning := conversation.warning(answer):
        terminal.note(warning)
    terminal.note(conversation.statistics(answer))


def chat_over_pipes(conversation: Conversation) -> int:
    """Answer every line of stdin on stdout, where nothing else goes. A turn that got no answer makes it exit with 1."""
    code = EXIT_DONE
    for line in sys.stdin:
        try:
            match read_line(line):
                case Command(name) if name in _LEAVING:
                    break
                case Command() as command:
                    print(conversation.obey(command), file=sys.stderr)
                case Mistake(advice):
                    print_error(advice)
                case Message(text):
                    answer = _reply_over_pipes(conversation, text)
                    if answer.error is not None:
                        print_error(str(answer.error))
                        code = EXIT_FAILED
                    elif answer.finish_reason == "aborted":
                        return EXIT_INTERRUPTED
        except RequestError as error:
            print_error(str(error))
            code = EXIT_FAILED
        except HopformerError as error:
            print_error(str(error))
    return code


def _reply_over_pipes(conversation: Conversation, text: str) -> Answer:
    """Print an answer, which SIGINT cuts off."""
    with interrupt_noted() as interrupt:
        answer = conversation.reply(text, _write, interrupt)
    _write("\n")
    if warning := conversation.warning(answer):
        print_error(warning)
    return answer


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
