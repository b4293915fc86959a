"""CUDA graphs of decode steps: a step's hundreds of launches, recorded once and repeated by one call.

What is captured is decode_step.py's StaticDecode; nothing here knows what it computes.
"""

import torch

from .decode_step import Launch, StaticDecode

_WARM_UP_RUNS = 2  # the first compiles kernels and lets libraries allocate; the second is as the recorded one will be


class GraphPool:
    """Captures decode steps on one GPU, in graphs that share their memory: only one of them may run at a time.

    One stream serves every warm-up and every capture. Memory is shared between captures on the same stream only, and a
    library's workspace, which belongs to a stream, then is allocated once and outside of the graphs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._first: torch.cuda.CUDAGraph | None = None

    def capture(self, step: StaticDecode) -> Launch:
        """Record ``step.run``; returns what repeats it on the current stream.

        The step runs before, with no row filled: nothing is written to the cache.
        """
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)
            step.fill(())
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UP_RUNS):
                    step.run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            memory = None if self._first is None else self._first.pool()
            with torch.cuda.graph(graph, pool=memory, stream=self._stream):
                step.run()
        if self._first is None:
            self._first = graph
        return graph.replay
