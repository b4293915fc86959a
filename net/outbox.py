"""What one end of a link has to say: which stream each message takes, which goes first, and how much may be under way.

Every session has a unidirectional stream of its own, so that its messages keep their order and wait for no other's lost
packet. A message above PIECE_BYTES is cut into pieces and only goes while there is nothing smaller: a decode step never
waits behind a prefill. The receiver's credit bounds what is under way, for QUIC's own windows do not wait for readers.
Not here: QUIC and time.
"""

from collections import deque
from dataclasses import dataclass, field

from ..errors import LinkError
from .messages import Message, SessionKey, Step
from .relay_messages import RelayMessage
from .wire import Frame, encode

PIECE_BYTES = 64 << 10
SHORT_PATH_PIECES = 4  # under way at most: enough to keep a short path busy
SHORT_PATH_DATAGRAMS = 90  # and at most so many: 3 ms of sending, which is what a decode step may find before it
WINDOW_BYTES = 5 << 20  # what the receiver stands, in all: 4 MiB of pieces on a long path, and 1 MiB of steps
MESSAGE_COST_BYTES = 256  # that each counts for beside its own, as the receiver's Python makes an object of it
MAX_QUEUED_BYTES = 64 << 20  # then nobody takes them: two of the longest messages, or minutes of decode steps
MAX_STREAMS = 64  # beyond it sessions share streams: aioquic allows 128, and looks at each for every packet
STREAM_ID_STEP = 4  # RFC 9000, section 2.1: the two low bits say who opened a stream and whether it goes both ways


@dataclass(eq=False, slots=True)
class _Stream:
    stream_id: int | None = None  # given at its first write: QUIC opens streams in the order of their ids
    sessions: set[SessionKey] = field(default_factory=set)
    num_pieces: int = 0  # that are queued


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for a stream, and whether they are its last."""

    stream_id: int
    data: bytes | memoryview
    end_stream: bool


@dataclass(slots=True)
class _Item:
    stream: _Stream
    data: memoryview
    is_credited: bool  # False for the link's own frames
    cost_bytes: int = 0  # due with its first byte
    end_stream: bool = False


class Outbox:
    """Messages in, writes out.

    Args:
        first_stream_id: 2 at the end that dialled and 3 at the other; this stream is for what belongs to no session.
    """

    def __init__(self, first_stream_id: int) -> None:
        self._next_stream_id = first_stream_id + STREAM_ID_STEP
        self._control = _Stream(first_stream_id)
        self._streams: dict[SessionKey, _Stream] = {}
        self._used: set[SessionKey] = set()
        self._urgent: deque[_Item] = deque()  # the link's own
        self._steps: deque[_Item] = deque()
        self._pieces: deque[_Item] = deque()
        self._num_sent = 0
        self._num_consumed = 0
        self.queued_bytes = 0

    @property
    def num_sessions(self) -> int:
        """Sessions that have a stream."""
        return len(self._streams)

    @property
    def unconsumed_bytes(self) -> int:
        """Bytes that were sent and for which no credit has come back."""
        return self._num_sent - self._num_consumed

    def send_own(self, frame: Frame) -> None:
        """Queue a Hello or a Credit, which needs no credit itself."""
        self._urgent.append(_Item(self._control, memoryview(b"".join(encode(frame))), False))

    def send(self, message: Message | RelayMessage) -> None:
        """Queue a message behind those of its session.

        Raises:
            WireError: it is beyond the wire's limits.
            LinkError: MAX_QUEUED_BYTES wait already.
        """
        parts = encode(message)
        num_bytes = sum(len(part) for part in parts)
        if self.queued_bytes + num_bytes > MAX_QUEUED_BYTES:
            raise LinkError(f"{self.queued_bytes} bytes wait and the peer takes none of them")
        session = getattr(message, "session", None)
        stream = self._control if session is None else self._stream_of(session)
        self.queued_bytes += num_bytes
        if num_bytes > PIECE_BYTES or stream.num_pieces:
            assert isinstance(message, Step) or stream.num_pieces
            stream.num_pieces += len(parts)
            self._pieces.extend(_Item(stream, memoryview(part), True) for part in parts)
            self._pieces[-len(parts)].cost_bytes = MESSAGE_COST_BYTES
        else:
            self._steps.append(_Item(stream, memoryview(b"".join(parts)), True, MESSAGE_COST_BYTES))

    def end_session(self, session: SessionKey) -> None:
        """Nothing more of it will be sent soon: close its stream behind what is queued, unless others share it."""
        stream = self._streams.pop(session, None)
        self._used.discard(session)
        if stream is None:
            return
        stream.sessions.discard(session)
        if not stream.sessions:
            last = _Item(stream, memoryview(b""), True, end_stream=True)
            if stream.num_pieces:
                stream.num_pieces += 1
                self._pieces.append(last)
            else:
                self._steps.append(last)

    def end_unused(self) -> None:
        """End the sessions of which nothing was sent since this was last called: their caller died without a Close."""
        for session in [one for one in self._streams if one not in self._used]:
            self.end_session(session)
        self._used.clear()

    def take_credit(self, num_consumed: int) -> None:
        """The receiver has taken out so many bytes, ever.

        Raises:
            LinkError: more than were sent, or fewer than before.
        """
        if not self._num_consumed <= num_consumed <= self._num_sent:
            raise LinkError(f"credit for {num_consumed} bytes; {self._num_consumed} to {self._num_sent} are possible")
        self._num_consumed = num_consumed

    def next_write(self, max_step_bytes: int, piece_window_bytes: int) -> Write | None:
        """What is to be written next, if anything may be.

        Args:
            max_step_bytes: cut smaller messages so that each write fills a datagram and can leave at once.
            piece_window_bytes: pieces wait while so much is under way.
        """
        if self._urgent:
            return self._cut(self._urgent, PIECE_BYTES)
        room = WINDOW_BYTES - self.unconsumed_bytes
        if self._steps:
            is_end = not self._steps[0].data
            return self._cut(self._steps, min(max_step_bytes, room)) if room > 0 or is_end else None
        if self._pieces and room > 0 and self.unconsumed_bytes < piece_window_bytes:
            return self._cut(self._pieces, min(PIECE_BYTES, room))
        return None

    def check_integrity(self) -> None:
        """The queues, the streams and the counts agree."""
        queues = (*self._steps, *self._pieces)
        assert self.queued_bytes == sum(len(item.data) for item in queues)
        assert 0 <= self.unconsumed_bytes <= WINDOW_BYTES + MESSAGE_COST_BYTES
        for session, stream in self._streams.items():
            assert session in stream.sessions
        assert self._used <= self._streams.keys()
        for item in self._pieces:
            assert item.stream.num_pieces == sum(other.stream is item.stream for other in self._pieces)

    def _stream_of(self, session: SessionKey) -> _Stream:
        self._used.add(session)
        stream = self._streams.get(session)
        if stream is None:
            in_use = set(self._streams.values()) if len(self._streams) >= MAX_STREAMS else ()
            stream = _Stream() if len(in_use) < MAX_STREAMS else min(in_use, key=lambda one: len(one.sessions))
            stream.sessions.add(session)
            self._streams[session] = stream
        return stream

    def _cut(self, queue: deque[_Item], max_bytes: int) -> Write:
        item = queue[0]
        if item.stream.stream_id is None:
            item.stream.stream_id = self._next_stream_id
            self._next_stream_id += STREAM_ID_STEP
        data, item.data = item.data[:max_bytes], item.data[max_bytes:]
        if item.is_credited:
            self._num_sent += len(data) + item.cost_bytes
            item.cost_bytes = 0
            self.queued_bytes -= len(data)
        is_over = not item.data
        if is_over:
            queue.popleft()
            if queue is self._pieces:
                item.stream.num_pieces -= 1
        return Write(item.stream.stream_id, data, item.end_stream and is_over)
