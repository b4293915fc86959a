"""What one end of a link hears: streams in, messages out, and credit for what was taken.

The opposite of outbox.py, and distrustful: whatever a peer does, it is held to its credit, to one large message at a
time, and to the streams that it has. Not here: QUIC and time.
"""

from ..errors import LinkError
from .outbox import MESSAGE_COST_BYTES, PIECE_BYTES, STREAM_ID_STEP, WINDOW_BYTES
from .wire import MAX_FRAME_BYTES, MAX_REVOKE_BYTES, MAX_SMALL_BYTES, Credit, Frame, FrameReader, LinkFrame, encode

CREDIT_BYTES = PIECE_BYTES  # consumed since the last credit before the next one is due
MAX_BUFFERED_BYTES = MAX_FRAME_BYTES + WINDOW_BYTES  # of messages that are not complete


class Inbox:
    """Bytes of streams in, messages out.

    Args:
        first_stream_id: of the peer, see Outbox.
        takes_sessions: where it does not, the first stream is the only one.
    """

    def __init__(self, first_stream_id: int, takes_sessions: bool = True) -> None:
        self._takes_sessions = takes_sessions
        self._first_stream_id = first_stream_id
        self._readers: dict[int, FrameReader] = {first_stream_id: FrameReader(MAX_REVOKE_BYTES)}
        self._buffered_bytes = 0
        self._num_received = 0
        self._num_credited = 0
        self.is_held = False  # no credit while nobody reads what comes out here

    @property
    def num_sessions(self) -> int:
        """Streams of sessions that are open."""
        return len(self._readers) - 1

    def feed(self, stream_id: int, data: bytes, end_stream: bool) -> list[Frame]:
        """The messages that the bytes complete.

        Raises:
            WireError: they are none.
            LinkError: the peer broke a rule of the link.
        """
        reader = self._reader_of(stream_id)
        self._buffered_bytes -= reader.num_buffered
        frames = reader.feed(data)
        self._buffered_bytes += reader.num_buffered
        self._num_received += len(data) + sum(map(_beside_its_bytes, frames))
        if stream_id == self._first_stream_id:
            if end_stream:
                raise LinkError("the peer ended its first stream and not the connection")
        elif any(isinstance(frame, LinkFrame) for frame in frames):
            raise LinkError(f"stream {stream_id} carries what only the first stream may")
        elif end_stream:
            self._end(stream_id, reader)
        self._check_bounds()
        return frames

    def credit_due(self) -> Credit | None:
        """The credit to send now, if it is worth a frame; it counts as sent."""
        if self.is_held or self._num_received - self._num_credited < CREDIT_BYTES:
            return None
        self._num_credited = self._num_received - self._buffered_control_bytes
        return Credit(self._num_credited)

    @property
    def _buffered_control_bytes(self) -> int:
        """They may turn out to be a frame that is not counted."""
        return self._readers[self._first_stream_id].num_buffered

    def _reader_of(self, stream_id: int) -> FrameReader:
        reader = self._readers.get(stream_id)
        if reader is None:
            if stream_id % STREAM_ID_STEP != self._first_stream_id % STREAM_ID_STEP:
                raise LinkError(f"stream {stream_id} goes both ways; there are none such")
            if not self._takes_sessions:
                raise LinkError("a relay takes no sessions")
            reader = self._readers[stream_id] = FrameReader()
        return reader

    def _end(self, stream_id: int, reader: FrameReader) -> None:
        if reader.num_buffered:
            raise LinkError(f"stream {stream_id} ended after {reader.num_buffered} bytes of a message")
        del self._readers[stream_id]

    def _check_bounds(self) -> None:
        ahead = self._num_received - self._num_credited
        if ahead > WINDOW_BYTES + MESSAGE_COST_BYTES + MAX_SMALL_BYTES:  # and half a Credit on the first stream
            raise LinkError(f"the peer sent {ahead} bytes beyond its credit; it may send {WINDOW_BYTES}")
        if self._buffered_bytes > MAX_BUFFERED_BYTES:
            raise LinkError(f"{self._buffered_bytes} bytes of messages are incomplete; send one at a time")


def _beside_its_bytes(frame: Frame) -> int:
    """What a message counts for beside its bytes; the link's own frames count for nothing at all."""
    return -len(encode(frame)[0]) if isinstance(frame, LinkFrame) else MESSAGE_COST_BYTES
