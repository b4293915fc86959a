"""How messages lie in bytes, both ways; docs/wire-format.md says the same for people.

A frame is length u32, kind u8, flags u8 and fields, all big-endian. Every number and every length is checked as soon as
its bytes are there, and before room is made for what follows. Not here: which stream a frame takes (outbox.py), and
what the rows in a payload mean (``payload_bytes`` only knows how many bytes they are).
"""

import math
import struct
import sys
from dataclasses import dataclass

from ..errors import WireError
from .identity import PEER_DIGEST_BYTES, PeerId
from .messages import (
    Ask,
    Close,
    Codec,
    Context,
    Done,
    Draw,
    Drawn,
    DrawnToken,
    Dtype,
    Goodbye,
    Lease,
    Message,
    Open,
    Opened,
    Reason,
    Refuse,
    Reroute,
    Rollback,
    Serving,
    SessionKey,
    Step,
)
from .relay_messages import (
    Accept,
    Announce,
    Candidates,
    Channel,
    IceOffer,
    Leave,
    Limited,
    Reach,
    Register,
    Registered,
    RelayMessage,
    Revoke,
    Unreachable,
    Watch,
    Withdrawn,
)
from .ways import CHANNEL_BYTES
from .wire_fields import (
    Blob,
    Both,
    Choice,
    Flag,
    Form,
    Number,
    Peer,
    Raw,
    Real,
    Session,
    Several,
    Text,
    Tuple,
    check_span,
    check_within,
    chosen,
)

WIRE_VERSION = 1  # agreed on by ALPN in the handshake (RFC 7301), so it is in no frame

MAX_PAYLOAD_BYTES = 32 << 20  # 2,048 tokens of 8,192 elements in bf16: the largest prefill chunk of the largest model
MAX_SMALL_BYTES = 8 << 10  # a message without activations; the longest, an Open with all its addresses, has 4.3 KiB
MAX_STEP_TOKENS = 1 << 15  # in a step
MAX_TOKENS = 1 << 24  # in a session; the longest contexts have 10 million
MAX_WIDTH = 1 << 16  # elements in a row; the widest models have 18,432
MAX_LAYERS = 1 << 12
MAX_LEASE_S = 24 * 3600
MAX_ADDRS = 16
MAX_ADDR_BYTES = 300  # a host name has at most 253 characters (RFC 1035, section 2.3.4), ":65535" six, a relay's id 41
MAX_CANDIDATES = 16
MAX_CANDIDATE_BYTES = 200  # of RFC 8839, section 5.1: two IPv6 addresses, six numbers, and the words between them
MAX_ICE_NAME_BYTES = 256  # a ufrag or a pwd (RFC 8839, section 5.4)
MAX_TEXT_BYTES = 1024
MAX_NAME_BYTES = 256  # a model's
MAX_VERSION_BYTES = 64
MAX_BATCH_SIZE = (1 << 16) - 1
MAX_CODECS = 8
MAX_TOKEN_ID = (1 << 24) - 1  # the largest vocabularies have 256,000
MAX_CONTEXT_IDS = 1024  # in a Context; a longer one is several
MAX_DRAWN_TOKENS = 64  # of a step: a token and its drafts
MAX_LOGPROBS = 100  # of a token, as llama/sampling.py has it
MAX_DRAWN_PAIRS = 900  # logprobs of a whole Drawn: 7,200 of the 8,192 bytes that it may have
FINGERPRINT_BYTES = 32
INSTANCE_BYTES = 8
PATH_TAG_BYTES = 8
PATH_KEY_BYTES = 16
MAX_MEMBERSHIP_BYTES = 1024  # see membership.py
MAX_ANNOUNCEMENT_BYTES = 4096  # sixteen usual addresses and the longest membership leave half of it
MAX_REVOCATIONS_BYTES = 22_632  # see revocations.py; the one small message that may be longer than the others
INT8_GROUP = 128  # elements that share a scale

_U32 = (1 << 32) - 1
_PREFIX = struct.Struct(">IBB")  # length, kind, flags
_LENGTH_BYTES = 4  # which `length` itself does not count
_STEP = struct.Struct(f">IBB{PEER_DIGEST_BYTES}sQIIIHBBI")
_STEP_KIND = 1
_IS_REPLAY, _IS_DRAWN = 0x01, 0x02
_REVOKE_KIND = 27

STEP_HEADER_BYTES = _STEP.size  # 56: a multiple of 8, so that a payload lies aligned for every dtype
MAX_REVOKE_BYTES = _PREFIX.size + 2 + MAX_REVOCATIONS_BYTES
MAX_FRAME_BYTES = STEP_HEADER_BYTES + MAX_PAYLOAD_BYTES

Part = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Hello:
    """A link's first word in either direction: this end has looked at the other's key and takes the connection.

    Attributes:
        instance: of this process, by chance; two connections from the same one are one too many.
        path_tag: what probes of a path to this end begin with.
        path_key: that they are authenticated by.
        membership: in which network this end is (membership.py); empty for none.
    """

    instance: bytes
    path_tag: bytes
    path_key: bytes
    membership: bytes = b""


@dataclass(frozen=True, slots=True)
class Credit:
    """How many bytes of messages this end has taken out of the link, ever; the other may be a window ahead."""

    num_consumed: int


LinkFrame = Hello | Credit
Frame = Message | RelayMessage | LinkFrame

_SESSION = Session()
_STEP_NUMBER = Number("step", 4, 0, _U32)
_POSITION = Number("position", 4, 0, MAX_TOKENS)
_ADDRS = Several("addresses", Text("an address", MAX_ADDR_BYTES), MAX_ADDRS)
_NEIGHBOURS = Both(_ADDRS)
_PEER = Peer()
_CHANNEL = Raw("channel", CHANNEL_BYTES)
_TOKEN_ID = Number("a token's id", 4, 0, MAX_TOKEN_ID)
_LOGPROB = Tuple(lambda *pair: pair, (_TOKEN_ID, Real("a log-probability", -math.inf, 0.0, is_single=True)))
_DRAWN_TOKEN = Tuple(DrawnToken, (_TOKEN_ID, Several("logprobs", _LOGPROB, MAX_LOGPROBS)), ("token_id", "logprobs"))
_LAYERS = {"start": Number("start", 2, 0, MAX_LAYERS), "end": Number("end", 2, 0, MAX_LAYERS)}
_FINGERPRINT = Raw("fingerprint", FINGERPRINT_BYTES)

_FORMS = (
    Form(
        2,
        Open,
        {
            "session": _SESSION,
            "fingerprint": _FINGERPRINT,
            **_LAYERS,
            "dtype": Choice(Dtype),
            "codec": Choice(Codec),
            "max_tokens": Number("max_tokens", 4, 1, MAX_TOKENS),
            "lease_s": Number("lease_s", 4, 1, MAX_LEASE_S),
            "neighbours": _NEIGHBOURS,
        },
        rule=lambda one: check_span(one.start, one.end, one.dtype),
    ),
    Form(3, Opened, {"session": _SESSION}),
    Form(
        4,
        Done,
        {
            "session": _SESSION,
            "step": _STEP_NUMBER,
            "queue_us": Number("queue_us", 4, 0, _U32),
            "compute_us": Number("compute_us", 4, 0, _U32),
            "batch_size": Number("batch_size", 2, 0, MAX_BATCH_SIZE),
        },
    ),
    Form(5, Reroute, {"session": _SESSION, "neighbours": _NEIGHBOURS, "replay_to": _POSITION}),
    Form(6, Rollback, {"session": _SESSION, "step": _STEP_NUMBER, "position": _POSITION}),
    Form(7, Close, {"session": _SESSION}),
    Form(8, Refuse, {"session": _SESSION, "reason": Choice(Reason), "text": Text("text", MAX_TEXT_BYTES)}),
    Form(9, Lease, {"session": _SESSION}),
    Form(10, Goodbye, {"grace_s": Number("grace_s", 4, 0, MAX_LEASE_S)}),
    Form(11, Ask, {}),
    Form(
        12,
        Serving,
        {
            "model": Text("model", MAX_NAME_BYTES),
            "fingerprint": _FINGERPRINT,
            **_LAYERS,
            "dtype": Choice(Dtype, optional=True),
            "codecs": Several("codecs", Choice(Codec), MAX_CODECS),
            "free_tokens": Number("free_tokens", 8, 0, (1 << 64) - 1),
            "step_us": Number("step_us", 4, 0, _U32),
            "version": Text("version", MAX_VERSION_BYTES),
        },
        rule=lambda one: check_span(one.start, one.end, one.dtype),
        flag="has_head",
    ),
    Form(
        13,
        Context,
        {
            "session": _SESSION,
            "start": _POSITION,
            "token_ids": Several("token ids", _TOKEN_ID, MAX_CONTEXT_IDS, count_bytes=2),
        },
    ),
    Form(
        14,
        Draw,
        {
            "session": _SESSION,
            "step": _STEP_NUMBER,
            "temperature": Real("temperature", 0.0, 100.0),
            "top_k": Number("top_k", 4, 0, (1 << 31) - 1),
            "top_p": Real("top_p", 0.0, 1.0),
            "min_p": Real("min_p", 0.0, 1.0),
            "repetition_penalty": Real("repetition_penalty", sys.float_info.min, 100.0),
            "seed": Number("seed", 8, 0, (1 << 64) - 1),
            "num_logprobs": Number("num_logprobs", 1, 0, MAX_LOGPROBS),
        },
    ),
    Form(
        15,
        Drawn,
        {
            "session": _SESSION,
            "step": _STEP_NUMBER,
            "position": _POSITION,
            "tokens": Several("tokens", _DRAWN_TOKEN, MAX_DRAWN_TOKENS),
        },
        rule=lambda one: check_within(
            "the number of logprobs", sum(len(token.logprobs) for token in one.tokens), 0, MAX_DRAWN_PAIRS
        ),
    ),
    Form(16, Register, {}),
    Form(17, Registered, {"addr": Text("an address", MAX_ADDR_BYTES), "max_rate": Number("max_rate", 8, 1, 1 << 40)}),
    Form(18, Reach, {"peer": _PEER}),
    Form(19, Channel, {"peer": _PEER, "channel": _CHANNEL, "is_asker": Flag("is_asker")}),
    Form(20, Accept, {"channel": _CHANNEL}),
    Form(21, Unreachable, {"peer": _PEER, "text": Text("text", MAX_TEXT_BYTES)}),
    Form(22, Leave, {"channel": _CHANNEL, "text": Text("text", MAX_TEXT_BYTES)}),
    Form(23, Limited, {"channel": _CHANNEL, "num_dropped": Number("num_dropped", 4, 1, _U32)}),
    Form(24, Announce, {"announcement": Blob("announcement", MAX_ANNOUNCEMENT_BYTES)}),
    Form(25, Watch, {}),
    Form(26, Withdrawn, {"peer": _PEER}),
    Form(28, Candidates, {"addrs": _ADDRS}),
    Form(
        29,
        IceOffer,
        {
            "is_answer": Flag("is_answer"),
            "ufrag": Text("ufrag", MAX_ICE_NAME_BYTES),
            "pwd": Text("pwd", MAX_ICE_NAME_BYTES),
            "candidates": Several("candidates", Text("a candidate", MAX_CANDIDATE_BYTES), MAX_CANDIDATES),
        },
    ),
    Form(27, Revoke, {"revocations": Blob("revocations", MAX_REVOCATIONS_BYTES)}),
    Form(
        128,
        Hello,
        {
            "instance": Raw("instance", INSTANCE_BYTES),
            "path_tag": Raw("path_tag", PATH_TAG_BYTES),
            "path_key": Raw("path_key", PATH_KEY_BYTES),
            "membership": Blob("membership", MAX_MEMBERSHIP_BYTES),
        },
    ),
    Form(129, Credit, {"num_consumed": Number("num_consumed", 8, 0, (1 << 64) - 1)}),
)
_FORM_OF_KIND = {form.kind: form for form in _FORMS}
_FORM_OF_TYPE = {form.message: form for form in _FORMS}


def payload_bytes(num_rows: int, width: int, dtype: Dtype, codec: Codec) -> int:
    """How long ``num_rows`` rows of ``width`` elements are once packed."""
    if codec is Codec.EXACT:
        return num_rows * width * dtype.itemsize
    return num_rows * (4 * -(-width // INT8_GROUP) + width)


def max_rows(width: int, dtype: Dtype, codec: Codec) -> int:
    """How many rows fit into one step."""
    return min(MAX_STEP_TOKENS, MAX_PAYLOAD_BYTES // payload_bytes(1, width, dtype, codec))


def encode(message: Frame) -> tuple[Part, ...]:
    """The frame of a message, as parts to be written one after the other; a payload is not copied.

    Raises:
        WireError: a field is beyond the wire's limits.
    """
    if isinstance(message, Step):
        payload = memoryview(message.payload).cast("B")
        _check_step(message, len(payload))
        return _pack_step_header(message, len(payload)), payload
    form = _FORM_OF_TYPE[type(message)]
    fields = form.pack(message)
    return (_PREFIX.pack(_PREFIX.size - _LENGTH_BYTES + len(fields), form.kind, form.flags(message)) + fields,)


def decode(frame: memoryview) -> Frame:
    """The message in one whole frame.

    Raises:
        WireError: it is none.
    """
    if len(frame) < _PREFIX.size:
        raise WireError(f"a frame has {len(frame)} bytes; it begins with {_PREFIX.size}")
    length, kind, flags = _PREFIX.unpack_from(frame)
    if _LENGTH_BYTES + length != len(frame):
        raise WireError(f"a frame of {len(frame)} bytes says that it has {_LENGTH_BYTES + length}")
    _check_prefix(kind, flags, len(frame))
    if kind == _STEP_KIND:
        step = _unpack_step(frame, frame[STEP_HEADER_BYTES:])
        _check_step(step, len(frame) - STEP_HEADER_BYTES)
        return step
    message: Frame = _FORM_OF_KIND[kind].unpack(frame[_PREFIX.size :], flags)
    return message


class FrameReader:
    """Bytes as they come, messages as they are complete.

    Args:
        max_frame_bytes: refuse longer ones, in addition to each kind's own limit.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._needed = _PREFIX.size  # bytes, before anything more can be said
        self._frame_bytes: int | None = None  # of the frame that has begun, once its beginning is checked

    @property
    def num_buffered(self) -> int:
        """Bytes of a frame that is not complete; 0 between two frames."""
        return len(self._buffer)

    def feed(self, data: Part) -> list[Frame]:
        """The messages that ``data`` completes. A payload is a view of memory that nothing else uses.

        Raises:
            WireError: the bytes are no message; the reader is of no further use.
        """
        self._buffer += data
        messages: list[Frame] = []
        begin = 0
        with memoryview(self._buffer) as view:
            while len(view) - begin >= self._needed:
                if self._frame_bytes is None:
                    self._look_ahead(view[begin:])
                else:
                    end = begin + self._frame_bytes
                    messages.append(decode(owned(view, begin, end)))
                    self._needed, self._frame_bytes, begin = _PREFIX.size, None, end
        if begin:
            self._buffer = self._buffer[begin:]  # the messages keep the old one
        return messages

    def _look_ahead(self, view: memoryview) -> None:
        """Check what is there of a frame's beginning, and say how much more is needed."""
        length, kind, flags = _PREFIX.unpack_from(view)
        frame_bytes = _LENGTH_BYTES + length
        _check_prefix(kind, flags, frame_bytes)
        check_within("the length of a frame", frame_bytes, 0, self._max_frame_bytes)
        if kind == _STEP_KIND and len(view) < frame_bytes:  # before its payload is waited for; else ``decode`` will
            if len(view) < STEP_HEADER_BYTES:
                self._needed = STEP_HEADER_BYTES
                return
            _check_step(_unpack_step(view, b""), frame_bytes - STEP_HEADER_BYTES)
        self._needed = self._frame_bytes = frame_bytes


def owned(view: memoryview, begin: int, end: int) -> memoryview:
    """A part of a buffer, copied where it would keep much more than itself alive."""
    part = view[begin:end]
    return part if 2 * len(part) > len(view) else memoryview(bytearray(part))


def _check_prefix(kind: int, flags: int, frame_bytes: int) -> None:
    if kind == _STEP_KIND:
        low, high, known_flags = STEP_HEADER_BYTES, MAX_FRAME_BYTES, _IS_REPLAY | _IS_DRAWN
    elif kind in _FORM_OF_KIND:
        low, high, known_flags = _PREFIX.size, MAX_SMALL_BYTES, _FORM_OF_KIND[kind].known_flags
        if kind == _REVOKE_KIND:
            high = MAX_REVOKE_BYTES
    else:
        raise WireError(f"kind {kind} is no message of version {WIRE_VERSION}")
    if not low <= frame_bytes <= high:
        raise WireError(f"a frame of kind {kind} has {frame_bytes} bytes; {low} to {high} are allowed")
    if flags & ~known_flags:
        raise WireError(f"a frame of kind {kind} has flags {flags:#04x}; it knows {known_flags:#04x}")


def _pack_step_header(step: Step, num_payload_bytes: int) -> bytes:
    return _STEP.pack(
        STEP_HEADER_BYTES - _LENGTH_BYTES + num_payload_bytes,
        _STEP_KIND,
        _IS_REPLAY * step.is_replay | _IS_DRAWN * step.is_drawn,
        step.session.caller.digest,
        step.session.number,
        step.step,
        step.position,
        step.num_tokens,
        step.num_wanted,
        step.dtype,
        step.codec,
        step.width,
    )


def _unpack_step(frame: memoryview, payload: Part) -> Step:
    _, _, flags, caller, number, step, position, num_tokens, num_wanted, dtype, codec, width = _STEP.unpack_from(frame)
    session, is_replay = SessionKey(PeerId(caller), number), bool(flags & _IS_REPLAY)
    kinds = chosen(Dtype, dtype), chosen(Codec, codec)
    is_drawn = bool(flags & _IS_DRAWN)
    return Step(session, step, position, num_tokens, num_wanted, is_replay, *kinds, width, payload, is_drawn)


def _check_step(step: Step, num_payload_bytes: int) -> None:
    """Everything about a step, before its payload is there.

    As many rows as the step has tokens go to a hop, as many as are wanted to the caller. Which of the two a receiver
    is, its session knows; either is accepted here.
    """
    check_within("a session's number", step.session.number, 0, (1 << 64) - 1)
    check_within("step", step.step, 0, _U32)
    check_within("num_tokens", step.num_tokens, 1, MAX_STEP_TOKENS)
    check_within("position", step.position, 0, MAX_TOKENS - step.num_tokens)
    check_within("num_wanted", step.num_wanted, 0, step.num_tokens)
    check_within("width", step.width, 1, MAX_WIDTH)
    row_bytes = payload_bytes(1, step.width, step.dtype, step.codec)
    if num_payload_bytes not in (step.num_tokens * row_bytes, step.num_wanted * row_bytes):
        raise WireError(
            f"a step's payload has {num_payload_bytes} bytes; {step.num_tokens} rows of {row_bytes} bytes, "
            f"or the {step.num_wanted} wanted, have others"
        )
    check_within("the length of a step's payload", num_payload_bytes, 0, MAX_PAYLOAD_BYTES)
