"""Pipeline: the layers that a caller needs, in stretches: those that it runs here, and between them routes over peers.

Tokens are fed in chunks, and each chunk goes from stretch to stretch as soon as it can, so that the hops of a route and
the layers here work on different chunks at the same time. Sequences are "flows" here; what is drawn from their last
rows is remote.py's.

Legend: T tokens of a chunk, E hidden_size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..llama.batch import Chunk
from ..llama.model import Embed
from ..llama.runner import SpanRunner
from ..llama.sampling import SamplingParams
from .activations import pack, unpack
from .caller_node import CallerNode
from .caller_session import CallerSession, Terms
from .identity import PeerId
from .kept_rows import KeptRows
from .layer_range import LayerRange, gaps
from .messages import Context, Draw, Drawn, DrawnToken, SessionKey, Step, ToLastHop
from .row_layout import Payload, RowLayout
from .wire import MAX_CONTEXT_IDS

CHUNK_TOKENS = 128  # of a prompt; a 512-token step of the engine is four, which keeps as many hops busy


@dataclass(frozen=True, slots=True)
class Stretch:
    """Layers that are run here, or else on peers."""

    layers: LayerRange
    local: SpanRunner | None


@dataclass(frozen=True, slots=True)
class RouteHop:
    """Who runs ``layers``; None is this node."""

    layers: LayerRange
    peer: PeerId | None


@dataclass(slots=True, eq=False)
class Flow:
    """One sequence on its way through the stretches.

    Attributes:
        number: its name in the pages of local stretches.
        token_ids: all that it should have; ``fed`` of them were fed.
        rows: [E] each, by position: what came out of the last stretch and was wanted.
        drawn: instead, where the last hop draws: the token behind each position.
        sampling: how, for the steps that are fed next.
        num_told: of token_ids, that the last hop knows for a repetition penalty.
        sessions: by the index of their stretch.
        wanted: of each chunk in a session that is not the last stretch, how many rows its last stretch should give.
    """

    number: int
    token_ids: list[int] = field(default_factory=list)
    fed: int = 0
    rows: dict[int, Tensor] = field(default_factory=dict)
    drawn: dict[int, DrawnToken] = field(default_factory=dict)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    num_told: int = 0
    sessions: dict[int, CallerSession] = field(default_factory=dict)
    kept: dict[int, KeptRows] = field(default_factory=dict)
    wanted: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A chunk before a local stretch. rows: [T, E]."""

    flow: Flow
    position: int
    rows: Tensor
    num_wanted: int


class _Embedded:
    """The rows before the first layer, made of the token ids whenever they are asked for."""

    def __init__(self, flow: Flow, embed: Callable[[Sequence[int]], Tensor], layout: RowLayout) -> None:
        self._flow, self._embed, self._layout = flow, embed, layout

    def payload(self, start: int, stop: int) -> Payload:
        """See RowSource."""
        return pack(self._embed(self._flow.token_ids[start:stop]), self._layout)


class _Kept:
    """The rows that came out of the local stretch before."""

    def __init__(self, kept: KeptRows) -> None:
        self._kept = kept

    def payload(self, start: int, stop: int) -> Payload:
        """See RowSource."""
        return self._kept.between(start, stop)


class _Drawer:
    """Tells the last hop how to draw a flow's next token."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def opened(self) -> None:
        """See Drawer."""
        self._flow.num_told = 0

    def words(self, key: SessionKey, step: int, stop: int) -> list[ToLastHop]:
        """See Drawer."""
        flow, sampling = self._flow, self._flow.sampling
        words: list[ToLastHop] = []
        while sampling.repetition_penalty != 1.0 and flow.num_told < stop:
            start, flow.num_told = flow.num_told, min(flow.num_told + MAX_CONTEXT_IDS, stop)
            words.append(Context(key, start, tuple(flow.token_ids[start : flow.num_told])))
        draw = Draw(
            session=key,
            step=step,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed or 0,  # greedy has none
            num_logprobs=sampling.logprobs,
        )
        return [*words, draw]


class Pipeline:
    """Owner of the flows.

    Args:
        local: the layers that run here, in order; each has pages of its own, which are the pipeline's alone.
        terms: of every session; with is_drawn the hop behind which there is none draws the tokens.
    """

    def __init__(
        self,
        node: CallerNode,
        terms: Terms,
        layout: RowLayout,
        embed: Embed,
        local: Sequence[SpanRunner],
        num_layers: int,
    ) -> None:
        self._node = node
        self._terms = terms
        self._layout = layout
        self._embedding = embed
        own = [Stretch(LayerRange(one.span.start, one.span.end), one) for one in local]
        others = [Stretch(hole, None) for hole in gaps((one.layers for one in own), LayerRange(0, num_layers))]
        self.stretches = sorted([*own, *others], key=lambda one: one.layers)
        self._ready: dict[int, list[_Ready]] = {index: [] for index, one in enumerate(self.stretches) if one.local}
        self._num_opened = 0

    @property
    def routed(self) -> list[LayerRange]:
        """The layers that peers run."""
        return [one.layers for one in self.stretches if one.local is None]

    def open(self) -> Flow:
        """A flow without tokens. Peers hear of it with the first chunk."""
        flow = Flow(self._num_opened)
        self._num_opened += 1
        for index, stretch in enumerate(self.stretches):
            if stretch.local is not None:
                stretch.local.sequences.open(flow.number)
            else:
                self._open_session(flow, index, stretch.layers)
        return flow

    def reserve(self, flow: Flow, num_tokens: int) -> None:
        """Make room here for a flow's first ``num_tokens``; peers make it when they come.

        Raises:
            OutOfPages: there is none.
        """
        for stretch in self.stretches:
            if stretch.local is not None:
                stretch.local.sequences.reserve(flow.number, num_tokens)

    def feed(self, flow: Flow, num_wanted: int) -> None:
        """Let all tokens come through that were not fed yet, and the rows of the last ``num_wanted`` be kept."""
        end = len(flow.token_ids)
        self.reserve(flow, end)
        while flow.fed < end:
            position, stop = flow.fed, min(flow.fed + CHUNK_TOKENS, end)
            flow.fed = stop
            self._enter(
                flow, 0, position, None, stop - position, min(max(stop - (end - num_wanted), 0), stop - position)
            )

    def length(self, flow: Flow) -> int:
        """Tokens that have come through all stretches."""
        lengths = [session.steps.length for session in flow.sessions.values()]
        lengths += [one.local.sequences.length(flow.number) for one in self.stretches if one.local is not None]
        return min(lengths)

    def route(self, flow: Flow) -> list[RouteHop]:
        """Who runs a flow's layers; where no route is chosen yet, nobody is named."""
        hops: list[RouteHop] = []
        for index, stretch in enumerate(self.stretches):
            if stretch.local is not None:
                hops.append(RouteHop(stretch.layers, None))
            else:
                hops.extend(RouteHop(hop.layers, hop.peer) for hop in flow.sessions[index].route)
        return hops

    def rollback(self, flow: Flow, length: int) -> None:
        """Forget the tokens from ``length`` on; what is in flight with tokens before it is fed again."""
        del flow.token_ids[length:]
        flow.fed = min([flow.fed, length, *(session.rollback(length) for session in flow.sessions.values())])
        for session in flow.sessions.values():
            session.rollback(flow.fed)
        self._cut(flow, flow.fed)

    def restart(self, flow: Flow) -> None:
        """Forget all that was computed, but not the tokens: the next ``feed`` begins with the first."""
        for session in flow.sessions.values():
            session.close()
        flow.fed = 0
        self._cut(flow, 0)

    def close(self, flow: Flow) -> None:
        """Give back all that a flow has, here and at peers."""
        self.restart(flow)
        for session in flow.sessions.values():
            self._node.close_session(session)
        for stretch in self.stretches:
            if stretch.local is not None:
                stretch.local.sequences.release(flow.number)

    def work(self) -> None:
        """Compute what is ready in the stretches here, all flows together, until nothing is."""
        for index, stretch in enumerate(self.stretches):
            while stretch.local is not None and (batch := self._take_batch(index, stretch.local)):
                self._compute(index, stretch.local, batch)

    def check_integrity(self) -> None:
        """Assert every invariant of the local stretches."""
        for stretch in self.stretches:
            if stretch.local is not None:
                stretch.local.sequences.check_integrity()

    def _open_session(self, flow: Flow, index: int, layers: LayerRange) -> None:
        if index == 0:
            source: _Embedded | _Kept = _Embedded(flow, self._embed, self._layout)
        else:
            flow.kept[index] = KeptRows(self._layout)
            source = _Kept(flow.kept[index])

        is_last = index + 1 == len(self.stretches)

        def sink(step: Step | Drawn) -> None:
            if isinstance(step, Drawn):
                flow.drawn.update(enumerate(step.tokens, step.position))
                return
            num_wanted = step.num_wanted if is_last else flow.wanted.pop((index, step.position))
            rows = unpack(step.payload, self._layout)
            self._enter(flow, index + 1, step.position, rows, step.num_tokens, num_wanted)

        drawer = _Drawer(flow) if is_last and self._terms.is_drawn else None
        flow.sessions[index] = self._node.open_session(layers, self._terms, source, sink, drawer)

    def _enter(
        self, flow: Flow, index: int, position: int, rows: Tensor | None, num_tokens: int, num_wanted: int
    ) -> None:
        """Bring a chunk to a stretch, or out behind the last one. rows: [T, E]; None before the first stretch."""
        if index == len(self.stretches):
            assert rows is not None
            first = position + num_tokens - num_wanted
            flow.rows.update(zip(range(first, first + num_wanted), rows[len(rows) - num_wanted :], strict=True))
        elif self.stretches[index].local is not None:
            if rows is None:
                rows = self._embed(flow.token_ids[position : position + num_tokens])
            self._ready[index].append(_Ready(flow, position, rows, num_wanted))
        else:
            if rows is not None:
                flow.kept[index].append(pack(rows, self._layout))
            is_last = index + 1 == len(self.stretches)
            if not is_last:
                flow.wanted[index, position] = num_wanted
            now = self._node.switchboard.now()
            flow.sessions[index].compute(num_tokens, num_wanted if is_last else num_tokens, now)

    def _take_batch(self, index: int, local: SpanRunner) -> list[_Ready]:
        """The next chunk of each flow that has one."""
        batch: dict[int, _Ready] = {}
        for ready in self._ready[index]:
            if ready.position == local.sequences.length(ready.flow.number):
                batch.setdefault(ready.flow.number, ready)
        taken = {id(ready) for ready in batch.values()}
        self._ready[index] = [ready for ready in self._ready[index] if id(ready) not in taken]
        return list(batch.values())

    @torch.inference_mode()
    def _compute(self, index: int, local: SpanRunner, batch: Sequence[_Ready]) -> None:
        counts = [len(ready.rows) for ready in batch]
        chunks = [Chunk(one.flow.number, one.position, count) for one, count in zip(batch, counts, strict=True)]
        hidden = torch.cat([ready.rows for ready in batch]).to(local.device)  # [T, E]
        hidden = local.forward(chunks, hidden)
        for ready, count, rows in zip(batch, counts, hidden.split(counts), strict=True):
            local.sequences.append(ready.flow.number, count)
            self._enter(ready.flow, index + 1, ready.position, rows, count, ready.num_wanted)

    @torch.inference_mode()
    def _embed(self, token_ids: Sequence[int]) -> Tensor:
        """The tokens' rows before the first layer: [T, E]."""
        device = self._embedding.weight.device
        return self._embedding(torch.tensor(token_ids, dtype=torch.int64, device=device))

    def _cut(self, flow: Flow, length: int) -> None:
        """Forget what local stretches, kept rows and chunks on their way have from ``length`` on."""
        for index, ready in self._ready.items():
            self._ready[index] = [one for one in ready if one.flow is not flow or one.position < length]
        for stretch in self.stretches:
            if stretch.local is not None and stretch.local.sequences.length(flow.number) > length:
                stretch.local.sequences.rollback(flow.number, length)
        for kept in flow.kept.values():
            kept.truncate(length)
        flow.wanted = {where: count for where, count in flow.wanted.items() if where[1] < length}
        flow.rows.clear()
        flow.drawn.clear()
        flow.num_told = min(flow.num_told, length)
