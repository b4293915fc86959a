"""Builds a Model, or a span of one, from a folder's tensors. What the files hold: weights.py.

Everything is read once, through a mapping, a layer at a time: merged, rounded to fewer bits where that is asked for,
and packed into memory of its own, after which the mapping is dropped. So the peak is the model plus one layer. The head
comes first, since it is the largest single tensor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..kernels import LeftLinear, Linear, PackedLinear, pack_linear, quantize_linear
from .config import ModelConfig
from .layers import FusedGateUp, GateUp, Layer, LayerShape, LayerWeights, MergedGateUp
from .model import Embed, Head, Model, Span
from .rotary import Rotary
from .weights import NamedShape, TensorFiles, embed_tensor, head_tensors, layer_tensors

Built = TypeVar("Built")
Progress = Callable[[int, int], None]  # parts loaded, parts in all
# The head is never rounded further: its errors reach the logits as they are, with no layer behind it to average them.
HEAD_BITS = 8


@dataclass(frozen=True, slots=True)
class ModelPart:
    """Which part of a model to load: the layers ``start .. end``, and what stands before and behind them."""

    start: int
    end: int
    embed: bool = True
    head: bool = True

    @classmethod
    def whole(cls, config: ModelConfig) -> "ModelPart":
        """Everything."""
        return cls(0, config.num_layers)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where weights go and as what.

    Attributes:
        max_context: sizes the rotary tables.
        weight_bits: 8 or 4 for the projections, the head's being 8 in either case; None leaves them as ``dtype``.
    """

    device: torch.device
    dtype: torch.dtype
    max_context: int
    weight_bits: int | None = None


def load_model(
    folder: Path, config: ModelConfig, part: ModelPart, placement: Placement, progress: Progress | None = None
) -> Model:
    """Load ``part`` of the model in ``folder``.

    Raises:
        WeightsError: a file or a tensor of the part is missing, truncated or of the wrong shape.
    """
    assert 0 <= part.start <= part.end <= config.num_layers
    reader = _Reader(TensorFiles.open(folder), placement)
    total = part.head + (part.end - part.start) + part.embed
    steps = iter(range(1, total + 1))

    def build(builder: Callable[..., Built], *arguments: int) -> Built:
        with reader.files.scope():
            built = builder(reader, config, *arguments)
        if progress is not None:
            progress(next(steps), total)
        return built

    head = build(_load_head) if part.head else None
    layers = [build(_load_layer, index) for index in range(part.start, part.end)]
    embed = build(_load_embed) if part.embed else None
    rotary = Rotary(config.rope, config.head_dim, placement.max_context, placement.device)
    return Model(config, placement.dtype, placement.device, embed, Span(part.start, layers, rotary), head)


class _Reader:
    """Reads tensors to where they will live."""

    def __init__(self, files: TensorFiles, placement: Placement) -> None:
        self.files = files
        self._placement = placement

    def view(self, tensor: NamedShape) -> Tensor:
        """The tensor on the device; on a CPU it stays mapped, so that only what is touched takes memory."""
        return self.files.read(*tensor, self._placement.dtype).to(self._placement.device)

    def copy(self, tensor: NamedShape) -> Tensor:
        """The tensor on the device, in memory of its own."""
        return self.files.read(*tensor, self._placement.dtype).to(self._placement.device, copy=True)

    @property
    def quantizes(self) -> bool:
        """Whether projections are rounded to fewer bits."""
        return self._placement.weight_bits is not None

    def project(self, tensors: Mapping[str, NamedShape], *roles: str, fewest_bits: int = 0) -> Linear:
        """The projections ``roles`` as one, one below the other, with their biases if they have them."""
        weights = [self.view(tensors[role]) for role in roles]
        biases = [self.view(tensors[f"{role}_bias"]) for role in roles if f"{role}_bias" in tensors]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        bias = torch.cat(biases) if biases else None
        if self._placement.weight_bits is not None:
            return quantize_linear(weight, bias, max(fewest_bits, self._placement.weight_bits))
        projection = pack_linear(weight, bias)
        if weight is weights[0] and not isinstance(projection, PackedLinear) and weight.device.type == "cpu":
            return pack_linear(weight.clone(), bias)  # a plain projection keeps the tensor: not the mapped one
        return projection


def _load_embed(reader: _Reader, config: ModelConfig) -> Embed:
    return Embed(reader.view(embed_tensor(config)))


def _load_head(reader: _Reader, config: ModelConfig) -> Head:
    tensors = head_tensors(config, reader.files.names)
    projection = reader.project(tensors, "head", fewest_bits=HEAD_BITS)
    return Head(reader.copy(tensors["norm"]), projection, config.rms_norm_eps)


def _load_layer(reader: _Reader, config: ModelConfig, index: int) -> Layer:
    tensors = layer_tensors(config, index)
    weights = LayerWeights(
        input_norm=reader.copy(tensors["input_norm"]),
        qkv=reader.project(tensors, "q", "k", "v"),
        q_norm=reader.copy(tensors["q_norm"]) if config.qk_norm else None,
        k_norm=reader.copy(tensors["k_norm"]) if config.qk_norm else None,
        o=reader.project(tensors, "o"),
        post_norm=reader.copy(tensors["post_norm"]),
        gate_up=_load_gate_up(reader, tensors),
        down=reader.project(tensors, "down"),
    )
    shape = LayerShape(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        sliding_window=config.sliding_windows[index],
    )
    return Layer(shape, weights)


def _load_gate_up(reader: _Reader, tensors: Mapping[str, NamedShape]) -> GateUp:
    """Two projections on a CPU, where it packs them and fuses what follows or has AMX; else one and the SwiGLU kernel.

    Quantised ones have nothing to fuse, and merged they round x only once.
    """
    if reader.quantizes:
        return MergedGateUp(reader.project(tensors, "gate", "up"))
    gate = reader.project(tensors, "gate")
    if isinstance(gate, PackedLinear | LeftLinear):
        return FusedGateUp(gate, reader.project(tensors, "up"))
    return MergedGateUp(reader.project(tensors, "gate", "up"))
