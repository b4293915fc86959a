"""``hopformer generate``: one answer for scripts."""

import json
import sys
from typing import Any

from ..errors import UsageError
from ..llama.chat import Chat
from ..llama.load import LoadedModel
from .answer import Answer, AnswerSettings, follow
from .interrupts import interrupt_noted
from .mesh_flags import MeshFlags
from .nodes import Nodes, open_nodes
from .options import LoadFlags, OutputFlags, SamplingFlags, StopFlags
from .prompt import Prompt, PromptFlags
from .reporting import EXIT_DONE, EXIT_INTERRUPTED
from .route_flags import RouteFlags

DEFAULT_MAX_TOKENS = 256  # enough for a paragraph or two; a script that forgot the flag still ends soon


def generate(
    reference: str,
    prompt_flags: PromptFlags,
    output: OutputFlags,
    load: LoadFlags,
    routes: RouteFlags,
    mesh: MeshFlags,
    sampling: SamplingFlags,
    stops: StopFlags,
) -> int:
    """Answer one prompt on stdout; returns the exit code. SIGINT ends the answer and keeps what was said.

    Raises:
        HopformerError: the model cannot be loaded, the request can never run, or its layers are served by nobody any
            more, after what there is of the answer was printed.
    """
    stops.check()
    output.check()
    prompt = prompt_flags.read()
    if load.template and not prompt.templated:
        raise UsageError("--template changes nothing where the prompt is taken as it is; drop it")
    with open_nodes(reference, load, routes, mesh) as (model, load_s, nodes):
        settings = AnswerSettings.of(
            model,
            sampling.params(model.defaults, output.logprobs or 0),
            stops.limited(DEFAULT_MAX_TOKENS),
            template_stops=prompt.templated,
            eos=not output.ignore_eos,
        )
        request = settings.request(_token_ids(model, prompt), model.engine.max_context)
        with interrupt_noted() as interrupt:
            nodes.heed(interrupt)
            answer = follow(model.engine, request, _keep_quiet if output.json else _write, interrupt)
        if output.json:
            print(json.dumps(_as_json(nodes, request.prompt_token_ids, answer, load_s)), flush=True)
        else:
            _write("\n")
    if answer.error is not None:
        raise answer.error
    return EXIT_INTERRUPTED if answer.finish_reason == "aborted" else EXIT_DONE


def _token_ids(model: LoadedModel, prompt: Prompt) -> list[int]:
    if prompt.token_ids is not None:
        return list(prompt.token_ids)
    if prompt.raw:
        return model.tokenizer.encode(prompt.text, add_special_tokens=True)
    return Chat(model.tokenizer, model.template, prompt.system).prompt_for(prompt.text)


def _as_json(nodes: Nodes, prompt_token_ids: Any, answer: Answer, load_s: float) -> dict[str, Any]:
    """The object that --json prints."""
    logprobs = {"logprobs": answer.logprobs} if answer.logprobs else {}
    return {
        "text": answer.text,
        "prompt_token_ids": list(prompt_token_ids),
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        **logprobs,
        "timings": {
            "load_s": load_s,
            "ttft_s": answer.ttft_s or 0.0,
            "prefill_tokens_per_s": answer.prefill_tokens_per_s,
            "decode_tokens_per_s": answer.decode_tokens_per_s,
        },
        "route": nodes.route(),
        "reroutes": nodes.num_reroutes,
    }


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _keep_quiet(text: str) -> None:
    """The text goes into the object."""
