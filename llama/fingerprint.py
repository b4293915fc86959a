"""Which model a folder holds, in 32 bytes, so that peers notice when they mean different ones.

A layer's part is a digest over its tensors' names, dtypes and shapes, and over samples of their bytes: of each tensor
the beginning, the end, and blocks at places that depend on its name. So a folder in one file or in many has the same
fingerprint, and nobody reads gigabytes. How the parts lie, and how two are compared, is fingerprint_bits.py's.

It proves no more than it reads. Another model, another training run, a merge, or another dtype are noticed. A few
changed elements may lie between the samples; embedding and head, which no other peer computes with, are left out; and
a peer that lies can send any 32 bytes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .config import ModelConfig, load_config
from .fingerprint_bits import CONFIG_BYTES, LAYER_BITS, layer_bits
from .weights import TensorFiles, layer_tensors

BLOCK_BYTES = 4096  # a page of memory, which is read as a whole anyway
NUM_BLOCKS = 16  # of a tensor: a model of 32 layers of 9 tensors is 18 MiB of reading

# Text, not what layers compute; dtypes are the tensors' own. Positions count: some kinds of RoPE depend on their number
_NO_MATHS = ("dtype", "bos_token_id", "eos_token_ids")


def fingerprint(folder: Path, start: int = 0, end: int | None = None) -> bytes:
    """The fingerprint of the model in ``folder``, 32 bytes; the bits of other layers than ``start .. end`` are 0.

    Layers of which a file is absent, as in a folder that was fetched for a span, have bits of 0 too.

    Raises:
        ConfigError: config.json cannot be used.
        WeightsError: a file is damaged, or has not the tensors that config.json asks for.
    """
    config = load_config(folder)
    files = TensorFiles.open(folder)
    bits = 0
    for index in range(start, config.num_layers if end is None else end):
        if all(files.has(name) for name, _ in layer_tensors(config, index).values()):
            with files.scope():
                bits |= layer_bits(_layer_digest(files, config, index), config.num_layers, index)
    return _config_digest(config) + bits.to_bytes(LAYER_BITS // 8, "little")


def _config_digest(config: ModelConfig) -> bytes:
    maths = {key: value for key, value in dataclasses.asdict(config).items() if key not in _NO_MATHS}
    return hashlib.sha256(json.dumps(maths, sort_keys=True).encode()).digest()[:CONFIG_BYTES]


def _layer_digest(files: TensorFiles, config: ModelConfig, index: int) -> bytes:
    """Over a layer's tensors: name, dtype, shape and samples of each, in the order of their roles."""
    digest = hashlib.sha256()
    for name, shape in layer_tensors(config, index).values():
        dtype = files.dtype(name)
        digest.update(f"{name} {dtype} {list(shape)}\n".encode())
        for block in _sampled(name, files.read(name, shape, dtype)):
            digest.update(block)
    return digest.digest()


def _sampled(name: str, tensor: Tensor) -> Iterator[bytes]:
    """Blocks of the tensor's bytes: all of a small one, else both ends and others chosen by its name."""
    content = tensor.flatten().view(torch.uint8)
    size = len(content)
    if size <= NUM_BLOCKS * BLOCK_BYTES:
        yield content.numpy().tobytes()
        return
    choice = hashlib.shake_256(name.encode()).digest(8 * (NUM_BLOCKS - 2))
    chosen = [int.from_bytes(choice[at : at + 8], "big") % (size - BLOCK_BYTES) for at in range(0, len(choice), 8)]
    for offset in (0, *chosen, size - BLOCK_BYTES):
        yield content[offset : offset + BLOCK_BYTES].numpy().tobytes()
