"""Model folders of real shapes with random weights: what a benchmark needs where no model has been downloaded.

    python -m hopformer.bench.random_model tinyllama FOLDER

keeps one; `hopformer bench decode random:tinyllama` makes one for itself and removes it. Speed does not depend on the
weights' values, as long as they are ordinary numbers. The sizes are those of the published config.json files.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import UsageError
from ..llama.config import ModelConfig, load_config
from ..llama.weights import INDEX_NAME, NamedShape, embed_tensor, head_tensors, layer_tensors

WEIGHT_STD = 0.02  # what the families start their training from
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _shape(model_type: str, sizes: tuple[int, int, int, int, int, int, int], **more: Any) -> dict[str, Any]:
    """config.json of (layers, hidden, intermediate, heads, KV heads, head_dim, vocabulary)."""
    layers, hidden, intermediate, heads, kv_heads, head_dim, vocab = sizes
    return {
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
        **more,
    }


def _llama3(sizes: tuple[int, int, int, int, int, int, int], factor: float, tied: bool) -> dict[str, Any]:
    return _shape(
        "llama",
        sizes,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling={**_LLAMA3_ROPE, "factor": factor},
        max_position_embeddings=131072,
        tie_word_embeddings=tied,
    )


SHAPES: Mapping[str, dict[str, Any]] = {
    "tinyllama": _shape(
        "llama",
        (22, 2048, 5632, 32, 4, 64, 32000),
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=2048,
    ),
    "llama-3.2-1b": _llama3((16, 2048, 8192, 32, 8, 64, 128256), 32.0, tied=True),
    "llama-3.2-3b": _llama3((28, 3072, 8192, 24, 8, 128, 128256), 32.0, tied=True),
    "llama-3.1-8b": _llama3((32, 4096, 14336, 32, 8, 128, 128256), 8.0, tied=False),
    "mistral-7b-v0.3": _shape(
        "mistral",
        (32, 4096, 14336, 32, 8, 128, 32768),
        rms_norm_eps=1e-5,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
        sliding_window=None,
    ),
    "qwen2.5-0.5b": _shape(
        "qwen2",
        (24, 896, 4864, 14, 2, 64, 151936),
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": _shape(
        "qwen3",
        (28, 1024, 3072, 16, 8, 128, 151936),
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
    "qwen3-8b": _shape(
        "qwen3",
        (36, 4096, 12288, 32, 8, 128, 151936),
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        max_position_embeddings=40960,
    ),
}
ALIASES = {"mistral-7b": "mistral-7b-v0.3"}


def write_random_model(
    folder: Path, shape: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> None:
    """Write a model with the config.json ``shape`` to ``folder``, a file for each layer; the same one every time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape, indent=2), encoding="utf-8")
    config = load_config(folder)
    generator = torch.Generator().manual_seed(0)
    parts = [_outer_tensors(config), *(layer_tensors(config, index).values() for index in range(config.num_layers))]
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for index, part in enumerate(parts):
        file = f"model-{index:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: _random(name, size, config, generator) for name, size in part}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
        if progress is not None:
            progress(index + 1, len(parts))
    index_content = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index_content), encoding="utf-8")


def find_shape(name: str) -> Mapping[str, Any]:
    """The config.json of a published shape.

    Raises:
        UsageError: there is none of that name.
    """
    full_name = ALIASES.get(name, name)
    if full_name not in SHAPES:
        raise UsageError(f"{name!r} is no shape of a random model; use one of {', '.join(SHAPES)}")
    return SHAPES[full_name]


def _outer_tensors(config: ModelConfig) -> list[NamedShape]:
    """What stands before and behind the layers."""
    return list(dict([embed_tensor(config), *head_tensors(config).values()]).items())


def _random(name: str, size: tuple[int, ...], config: ModelConfig, generator: torch.Generator) -> torch.Tensor:
    tensor = torch.empty(size, dtype=getattr(torch, config.dtype))
    if name.endswith("norm.weight"):
        return tensor.fill_(1.0)
    return tensor.normal_(0.0, WEIGHT_STD, generator=generator)


def main() -> None:
    """``SHAPE FOLDER`` from the command line."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m hopformer.bench.random_model {{{','.join(SHAPES)}}} FOLDER")
    try:
        write_random_model(Path(sys.argv[2]), find_shape(sys.argv[1]))
    except UsageError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
