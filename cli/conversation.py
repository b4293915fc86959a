"""A chat with a loaded model: a message in and an answer out, a command in and a line out. No terminal here."""

from collections.abc import Callable
from pathlib import Path

from ..errors import RequestError
from ..llama.chat import Chat
from ..llama.load import LoadedModel
from .answer import Answer, AnswerSettings, follow
from .chat_commands import HELP, Command
from .nodes import LocalNode, Nodes

_FULL = "clear begins a new conversation, save FILE keeps this one"


class Conversation:
    """What was said, and how to go on.

    Args:
        name: what the user calls the model.
        system: what the model is told before the first message.
        nodes: who computes; this one alone, if not given.
    """

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        settings: AnswerSettings,
        system: str | None = None,
        nodes: Nodes | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._settings = settings
        self._nodes = nodes or LocalNode(model.config.num_layers)
        self._chat = Chat(model.tokenizer, model.template, system)

    def reply(self, text: str, show: Callable[[str], None], stopped: Callable[[], bool]) -> Answer:
        """Answer a message; ``show`` gets the text as it comes, and ``stopped`` is asked after each step.

        What was said when it stopped stays in the conversation. A message without any answer does not.

        Raises:
            RequestError: the message does not fit into the context any more.
        """
        prompt = self._chat.prompt_for(text)
        self._nodes.heed(stopped)
        try:
            self._check_room(len(prompt))
            answer = follow(self._model.engine, self._settings.request(prompt, self._limit), show, stopped)
        except BaseException:
            self._chat.undo()
            raise
        if answer.token_ids:
            self._chat.answered(answer.token_ids, answer.text)
        else:
            self._chat.undo()
        return answer

    def obey(self, command: Command) -> str:
        """Do what a command other than exit says; returns what to tell the user.

        Raises:
            HopformerError: it cannot be done; the conversation is as it was.
        """
        match command:
            case Command("clear"):
                self._chat.clear()
                return "the conversation is empty"
            case Command("save", (name,)):
                self._chat.save(Path.cwd(), name)
                return f"saved {self._chat.num_tokens} tokens in {name}"
            case Command("load", (name,)):
                self._chat.load(Path.cwd(), name)
                return f"loaded {self._chat.num_tokens} tokens from {name}; the conversation goes on from there"
            case Command("peers"):
                return self._nodes.describe()
            case Command("connect", (peer_id, addr)):
                return self._nodes.connect(peer_id, addr)
            case _:
                assert command.name == "help", f"{command} is the caller's"
                return HELP

    def idle(self) -> None:
        """Keep in touch with whoever computes while the user thinks; to be called now and then."""
        self._nodes.idle()

    def greeting(self) -> str:
        """Which model this is, in one line."""
        model = self._model
        dtype = str(model.dtype).removeprefix("torch.")
        weights = "" if model.quantize == "none" else f" with {model.quantize} weights"
        layers = f"{model.config.num_layers} layers, {dtype}{weights} {self._nodes.place(str(model.device))}"
        return f"{self._name}: {layers}, a context of {self._limit} tokens"

    def statistics(self, answer: Answer) -> str:
        """How an answer came, in one line."""
        parts = [f"{len(answer.token_ids)} tokens"]
        if answer.finish_reason == "aborted":
            parts.insert(0, "stopped")
        elif answer.finish_reason == "length" and not self.fills_context(answer):
            parts.insert(0, "cut off by --max-tokens")
        if answer.decode_tokens_per_s:
            parts.append(f"{answer.decode_tokens_per_s:.1f} tokens/s")
        parts += [f"context {self._chat.num_tokens}/{self._limit}", f"{answer.num_cached} cached"]
        return ", ".join(parts)

    def warning(self, answer: Answer) -> str | None:
        """What the user must know before going on; None if there is nothing."""
        if not self.fills_context(answer):
            return None
        return f"the answer is cut off because the context of {self._limit} tokens is full; {_FULL}"

    def fills_context(self, answer: Answer) -> bool:
        """Whether the answer ended because no token more has room."""
        return answer.finish_reason == "length" and answer.num_prompt + len(answer.token_ids) >= self._limit

    @property
    def _limit(self) -> int:
        return self._model.engine.max_context

    def _check_room(self, num_tokens: int) -> None:
        if num_tokens >= self._limit:
            raise RequestError(
                f"with this message the conversation has {num_tokens} tokens and the context holds {self._limit}; "
                f"{_FULL}"
            )
