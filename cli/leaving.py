"""How a node that is told to end does so in time."""

import logging
import os
import threading

from ..net.switchboard import Switchboard
from .reporting import EXIT_DONE

log = logging.getLogger(__name__)

DRAIN_S = 2.0  # that open sessions have to move elsewhere; with the network's own end, a node is gone within 5 s
STEP_S = 0.5  # beyond that, for a step that still runs; then it is given up, as its caller has long gone elsewhere


def leave_in_time(switchboard: Switchboard) -> None:
    """End this process soon even if the layers compute on: on a slow machine a prompt takes longer than a drain."""

    def leave() -> None:
        log.warning("peer=%s gives up a step that still runs", switchboard.peer_id)
        switchboard.close()
        os._exit(EXIT_DONE)

    timer = threading.Timer(DRAIN_S + STEP_S, leave)
    timer.daemon = True
    timer.start()
