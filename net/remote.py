"""RemoteRunner: a Runner whose layers are run by peers, or some of them here. Embedding, norm, head and sampling are
here, so that nobody else sees a token; or the last hop has norm and head and draws, and this node need not load them.

Prompts are not waited for: a step that draws nothing returns as soon as its tokens are on their way, and the next one
is sent behind it. A sequence that is released is kept for a while, at the peers too, so that the conversation that it
belongs to can go on in it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NoRouteError, OutOfPages
from ..llama.config import ModelConfig
from ..llama.model import Embed, Head
from ..llama.runner import SpanRunner
from ..llama.sampling import SampledToken
from ..llama.step_sampler import StepItem, StepSampler
from .caller_node import LONGEST_WAIT_S, CallerNode
from .caller_session import Terms
from .layer_range import listed
from .pipeline import Flow, Pipeline, RouteHop
from .row_layout import RowLayout

MAX_TOKENS_IN_FLIGHT = 1024  # of a sequence: enough for every hop to have a chunk, 8 MiB at 4096 elements in bf16
MAX_IDLE_SEQUENCES = 2  # kept for a conversation that goes on; they take pages at every peer
SETTLING_S = 1.0  # how long peers are waited for at the start while others already make a route


@dataclass(frozen=True, slots=True)
class CallerPart:
    """What a caller has of the model: all but the layers, or all but some; ``local`` in order. Without a head the last
    hop draws.
    """

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    embed: Embed
    head: Head | None
    local: tuple[SpanRunner, ...] = ()


class RemoteRunner:
    """See the module's docstring.

    Args:
        terms: of every session; their max_tokens is the context.

    Attributes:
        stopped: asked while a peer is looked for; a step then ends at once where somebody wants the answer to stop.
    """

    def __init__(self, part: CallerPart, node: CallerNode, terms: Terms, layout: RowLayout) -> None:
        config = part.config
        self._node = node
        self._terms = terms
        self._vocab_size = config.vocab_size
        self._device = part.device
        self._pipeline = Pipeline(node, terms, layout, part.embed, part.local, config.num_layers)
        self._sampler = None
        if part.head is not None:
            self._sampler = StepSampler(part.head, config.vocab_size, part.device, self._context)
        self._flows: dict[int, Flow] = {}
        self._idle: list[Flow] = []  # the one that was used last is the last
        self._route: list[RouteHop] = []
        self.stopped: Callable[[], bool] = lambda: False
        self._num_reroutes = 0

    @property
    def max_context(self) -> int:
        """Tokens that one sequence may have."""
        return self._terms.max_tokens

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self._vocab_size

    @property
    def route(self) -> list[RouteHop]:
        """Who ran the layers of the last step; nobody before the first."""
        return self._route

    @property
    def num_reroutes(self) -> int:
        """How often hops were replaced, in all sequences so far."""
        flows = [*self._flows.values(), *self._idle]
        return self._num_reroutes + sum(session.num_reroutes for flow in flows for session in flow.sessions.values())

    def connect(self, show: Callable[[], None] | None = None) -> None:
        """Connect to all peers at once, until they make a route; ``show`` is called whenever something has happened.

        Raises:
            NoRouteError: they do not, for as long as terms.reroute_timeout_s.
        """
        switchboard, peers = self._node.switchboard, self._node.peers
        start = switchboard.now()
        while True:
            self._node.turn(LONGEST_WAIT_S)
            if show is not None:
                show()
            now = switchboard.now()
            missing = [hole for layers in self._pipeline.routed for hole in peers.missing(layers, now)]
            if not missing and (peers.is_settled or now >= start + SETTLING_S):
                return
            if missing and now >= start + self._terms.reroute_timeout_s:
                raise NoRouteError(f"layers {listed(missing)} are served by nobody: {peers.why(missing, now)}")

    def open(self, sequence_id: int, token_ids: Sequence[int]) -> int:
        """See Runner.open."""
        assert sequence_id not in self._flows, f"sequence {sequence_id} is open"
        flow, num_common = self._resume(token_ids[:-1])
        self._flows[sequence_id] = flow
        return num_common

    def reserve(self, sequence_id: int, num_tokens: int) -> None:
        """See Runner.reserve; peers have room for so many sequences, and a further one has to wait."""
        flow = self._flows[sequence_id]
        if flow.fed == 0:
            capacity = self._capacity()
            while self._idle and len(self._flows) + len(self._idle) > capacity:
                self._close(self._idle.pop(0))
            if len(self._flows) > max(capacity, 1):
                raise OutOfPages(f"the peers have room for {capacity} sequences, and {len(self._flows)} are asked for")
        self._pipeline.reserve(flow, num_tokens)

    @torch.inference_mode()
    def step(self, items: Sequence[StepItem]) -> list[list[SampledToken]]:
        """See Runner.step.

        Raises:
            NoRouteError: some layers are served by nobody any more, or ``stopped`` says not to wait for somebody. The
                sequences are as they were before the step.
        """
        for item in items:
            flow = self._flows[item.sequence_id]
            assert len(flow.token_ids) == item.position, f"a step at {item.position} of {len(flow.token_ids)} tokens"
            flow.token_ids.extend(item.token_ids)
            flow.sampling = item.sampling
            self._pipeline.feed(flow, item.num_samples)
        try:
            self._turn(0.0)
            while not all(self._is_done(item) for item in items):
                self._turn(LONGEST_WAIT_S)
                if self._is_in_trouble and self.stopped():
                    raise NoRouteError("the answer was stopped while a peer was looked for")
        except NoRouteError:
            for item in items:
                self.rollback(item.sequence_id, item.position)
            raise
        if not any(item.num_samples for item in items):
            return [[] for _ in items]
        self._route = self._pipeline.route(self._flows[items[0].sequence_id])
        if self._sampler is None:
            return [self._take_drawn(item) for item in items]
        hidden = [row for item in items for row in self._take_rows(item)]  # [E] each
        return self._sampler.draw(torch.stack(hidden).to(self._device), items)

    def fork(self, sequence_id: int, new_id: int) -> None:
        """See Runner.fork. Peers share no pages between sessions: the tokens are computed again, with the next ones."""
        assert new_id not in self._flows, f"sequence {new_id} is open"
        flow = self._pipeline.open()
        flow.token_ids.extend(self._flows[sequence_id].token_ids)
        self._flows[new_id] = flow

    def rollback(self, sequence_id: int, length: int) -> None:
        """See Runner.rollback."""
        self._pipeline.rollback(self._flows[sequence_id], length)
        self._forget(sequence_id)

    def release(self, sequence_id: int) -> None:
        """See Runner.release."""
        flow = self._flows.pop(sequence_id)
        self._forget(sequence_id)
        self._pipeline.rollback(flow, self._pipeline.length(flow))
        if flow.token_ids:
            self._idle.append(flow)
        else:
            self._close(flow)
        while len(self._idle) > MAX_IDLE_SEQUENCES:
            self._close(self._idle.pop(0))

    def close(self) -> None:
        """Close every sequence, here and at the peers."""
        for flow in (*self._flows.values(), *self._idle):
            self._close(flow)
        self._flows.clear()
        self._idle.clear()

    def check_integrity(self) -> None:
        """Assert every invariant of the sequences, the sessions and the peers."""
        self._node.check_integrity()
        self._pipeline.check_integrity()
        for flow in (*self._flows.values(), *self._idle):
            assert self._pipeline.length(flow) <= flow.fed <= len(flow.token_ids)

    @property
    def _is_in_trouble(self) -> bool:
        return any(one.is_in_trouble for flow in self._flows.values() for one in flow.sessions.values())

    def _capacity(self) -> int:
        """How many sequences of max_context tokens the peers have room for."""
        now, peers = self._node.switchboard.now(), self._node.peers
        rooms = [peers.free_tokens(layers, now) // self.max_context for layers in self._pipeline.routed]
        return min(rooms, default=sys.maxsize)

    def _context(self, sequence_id: int) -> Sequence[int]:
        return self._flows[sequence_id].token_ids

    def _turn(self, timeout_s: float) -> None:
        """Let the network and the layers here do what they can.

        Raises:
            NoRouteError: a sequence in use cannot go on; it begins anew with the next step.
        """
        self._pipeline.work()
        self._node.turn(timeout_s)
        self._pipeline.work()
        if self._idle and self._is_in_trouble:
            self._close(self._idle.pop(0))  # its pages at the peers may be what is missing
        errors = []
        for flow in (*self._flows.values(), *self._idle):
            found = [session.error for session in flow.sessions.values() if session.error is not None]
            if found:
                self._pipeline.restart(flow)
                errors += found
        if errors:
            raise errors[0]

    def _is_done(self, item: StepItem) -> bool:
        """Whether an item's rows are here, or no more of its tokens on their way than may be."""
        flow = self._flows[item.sequence_id]
        end = item.position + len(item.token_ids)
        if item.num_samples:
            found = flow.rows if self._sampler is not None else flow.drawn
            return all(position in found for position in range(end - item.num_samples, end))
        return end - self._pipeline.length(flow) <= MAX_TOKENS_IN_FLIGHT

    def _take_rows(self, item: StepItem) -> list[Tensor]:
        flow = self._flows[item.sequence_id]
        end = item.position + len(item.token_ids)
        return [flow.rows.pop(position) for position in range(end - item.num_samples, end)]

    def _take_drawn(self, item: StepItem) -> list[SampledToken]:
        flow = self._flows[item.sequence_id]
        end = item.position + len(item.token_ids)
        tokens = [flow.drawn.pop(position) for position in range(end - item.num_samples, end)]
        return [SampledToken(one.token_id, one.logprobs) for one in tokens]

    def _forget(self, sequence_id: int) -> None:
        if self._sampler is not None:
            self._sampler.forget(sequence_id)

    def _resume(self, token_ids: Sequence[int]) -> tuple[Flow, int]:
        """The idle flow that begins most like ``token_ids``, cut to what they have in common; else a new one."""
        best, num_common = None, 0
        for flow in self._idle:
            pairs = zip(flow.token_ids[: self._pipeline.length(flow)], token_ids, strict=False)
            count = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
            count = min(self._pipeline.length(flow), len(token_ids)) if count is None else count
            if count > num_common:
                best, num_common = flow, count
        if best is None:
            return self._pipeline.open(), 0
        self._idle.remove(best)
        self._pipeline.rollback(best, num_common)
        return best, num_common

    def _close(self, flow: Flow) -> None:
        self._num_reroutes += sum(session.num_reroutes for session in flow.sessions.values())
        self._pipeline.close(flow)
