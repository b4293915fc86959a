"""Where a node's or a relay's figures are served, if anywhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import NetworkError
from ..net.metrics import Figures, MetricsServer


@contextmanager
def metrics_server(figures: Figures, addr: tuple[str, int] | None) -> Iterator[str | None]:
    """Serve ``figures`` at ``addr``, host and port; where that is, or None where it was not asked for.

    Raises:
        NetworkError: the address is taken, or is not this machine's.
    """
    if addr is None:
        yield None
        return
    try:
        server = MetricsServer(figures, *addr)
    except OSError as error:
        host, port = addr
        raise NetworkError(f"--metrics {host}:{port} cannot be listened at: {error.strerror}") from error
    server.start()
    try:
        yield server.addr
    finally:
        server.close()
