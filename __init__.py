"""hopformer runs Llama-family models on one machine or across many.

The rooms, each importing only those to its left: ``kernels <- llama <- net <- cli``; ``errors`` is a leaf.
docs/architecture.md walks through them.
"""

__version__ = "0.1.0"
