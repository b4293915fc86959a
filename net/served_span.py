"""What a node serves, what it lets its callers have, and which sessions it therefore refuses to open."""

from dataclasses import dataclass

from ..llama.fingerprint_bits import same_model
from .messages import Codec, Dtype, Open, Reason, Serving
from .row_layout import RowLayout


@dataclass(frozen=True, slots=True)
class ServedSpan:
    """The layers ``start .. end`` of a model on this node.

    Attributes:
        model: its name, for people.
        fingerprint: see llama/fingerprint.py.
        num_layers: of the whole model.
        width: elements in a row of activations, the model's hidden_size.
        dtype: of the activations.
        codecs: that may pack them.
        max_tokens: that a session may have.
        version: of the software.
        vocab_size: token ids are below it, where the model's head is here as well; else 0.
    """

    model: str
    fingerprint: bytes
    start: int
    end: int
    num_layers: int
    width: int
    dtype: Dtype
    codecs: tuple[Codec, ...]
    max_tokens: int
    version: str
    vocab_size: int = 0

    def layout(self, codec: Codec) -> RowLayout:
        """Of a session's rows."""
        return RowLayout(self.dtype, codec, self.width)

    def announce(self, free_tokens: int, step_us: int) -> Serving:
        """The answer to who asks."""
        span = self.start, self.end, self.dtype, self.codecs
        has_head = self.vocab_size > 0
        return Serving(self.model, self.fingerprint, *span, free_tokens, step_us, self.version, has_head)

    def announce_nothing(self) -> Serving:
        """The same of a node that serves no layers now."""
        return Serving(self.model, self.fingerprint, 0, 0, None, (), 0, 0, self.version)

    def refusal_of(self, opening: Open) -> tuple[Reason, str] | None:
        """Why a session does not fit what is served here; None where it does."""
        if not self.start <= opening.start < opening.end <= self.end:
            asked = f"{opening.start}:{opening.end}"
            return Reason.MODEL, f"layers {asked} were asked for; this node serves {self.start}:{self.end}"
        if not same_model(self.fingerprint, opening.fingerprint, self.num_layers, opening.start, opening.end):
            return Reason.MODEL, (
                f"this node serves {self.model}, fingerprint {self.fingerprint.hex()[:16]}...; the session is of "
                f"another model, fingerprint {opening.fingerprint.hex()[:16]}..., or of other weights under its name"
            )
        if opening.dtype != self.dtype:
            return Reason.MODEL, f"activations of {opening.dtype.name} were offered; this node takes {self.dtype.name}"
        if opening.codec not in self.codecs:
            taken = " and ".join(codec.name for codec in self.codecs)
            return Reason.MODEL, f"activations packed as {opening.codec.name} were offered; this node takes {taken}"
        if not 1 <= opening.max_tokens <= self.max_tokens:
            asked = f"a session of {opening.max_tokens} tokens was asked for"
            return Reason.BUSY, f"{asked}; this node's have at most {self.max_tokens}: restart it with --max-context"
        return None


@dataclass(frozen=True, slots=True)
class HopLimits:
    """What the peers of a node may use of it, each by itself and all together.

    Attributes:
        max_sessions: on the node.
        max_caller_sessions: of one caller.
        max_caller_tokens: that one caller's sessions may have together; None for all that there is room for.
        max_waiting_steps: of a session, that are not computed yet. A caller has some tens of steps in flight.
        max_waiting_bytes: of the payloads of all steps of one caller that are not computed yet: 8 of the largest.
        max_step_tokens: in a step, which is one pass through the layers; four times a usual prefill chunk.
        max_lease_s: longer leases are cut to this.
        grace_s: how long a session is kept after the connection to its caller was lost.
        max_batch_tokens: no further step joins a batch that has as many; as llama/scheduler.py has it.
        decode_tokens: steps of at most so many tokens go before longer ones: a token and its drafts.
    """

    max_sessions: int = 256
    max_caller_sessions: int = 32
    max_caller_tokens: int | None = None
    max_waiting_steps: int = 256
    max_waiting_bytes: int = 256 << 20
    max_step_tokens: int = 2048
    max_lease_s: int = 3600
    grace_s: float = 30.0
    max_batch_tokens: int = 512
    decode_tokens: int = 8
