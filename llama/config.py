"""config.json and generation_config.json, validated: what a model is, in our words, and how it likes to be sampled.

Missing keys take the values that transformers gives them for the model's type. A key that changes the maths in a way
that hopformer does not support is refused by its name: better no answer than a wrong one.
"""

import reprlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from .foreign_json import Fields, read_json_object
from .model_families import FAMILIES, Family, neutral_values
from .rope import RopeConfig
from .rope_config import read_rope

__all__ = ["GenerationDefaults", "ModelConfig", "RopeConfig", "load_config", "load_generation_defaults"]

DTYPES = ("bfloat16", "float16", "float32")

# Sizes that no model comes near; they turn a damaged number into a message instead of an allocation.
_LIMITS = {
    "num_hidden_layers": (1, 4096),
    "hidden_size": (1, 2**20),
    "intermediate_size": (1, 2**22),
    "num_attention_heads": (1, 2**14),
    "num_key_value_heads": (1, 2**14),
    "head_dim": (2, 2**12),
    "vocab_size": (1, 2**24),
    "max_position_embeddings": (1, 2**30),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A Llama-family model.

    Attributes:
        model_type: "llama", "mistral", "qwen2" or "qwen3".
        qkv_bias, o_bias, mlp_bias: which projections have a bias.
        qk_norm: whether each head of q and k has an RMSNorm before RoPE.
        sliding_windows: for each layer, how many tokens it sees, itself included; 0 for all.
        dtype: of the checkpoint: "bfloat16", "float16" or "float32".
        eos_token_ids: any of them ends an answer.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int, ...]
    dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """How a model's authors sample it; the fields mean what they do in sampling.SamplingParams."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def load_config(folder: Path) -> ModelConfig:
    """Read ``folder``/config.json, and the end-of-sequence ids of generation_config.json, which win.

    Raises:
        ConfigError: a file is missing or malformed, or the model is not one that hopformer computes correctly.
    """
    path = folder / "config.json"
    fields = Fields(str(path), read_json_object(path))
    family = _find_family(fields)
    _refuse_other_maths(fields, family)
    sizes = _read_sizes(fields, family)
    num_layers = sizes["num_hidden_layers"]
    attention_bias = fields.flag("attention_bias", False)
    generation = _read_generation_fields(folder)
    eos_token_ids = generation.token_ids("eos_token_id") or fields.token_ids("eos_token_id") or family.eos_token_ids
    bos_token_ids = generation.token_ids("bos_token_id") or fields.token_ids("bos_token_id")
    return ModelConfig(
        model_type=fields.text("model_type", ""),
        num_layers=num_layers,
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        vocab_size=sizes["vocab_size"],
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6, 0.0, 1.0),
        rope=read_rope(fields, sizes["max_position_embeddings"]),
        max_position_embeddings=sizes["max_position_embeddings"],
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias if family.o_bias is None else family.o_bias,
        mlp_bias=fields.flag("mlp_bias", False),
        qk_norm=family.qk_norm,
        sliding_windows=_read_windows(fields, family, num_layers),
        dtype=_read_dtype(fields),
        bos_token_id=bos_token_ids[0] if bos_token_ids else family.bos_token_id,
        eos_token_ids=eos_token_ids,
    )


def load_generation_defaults(folder: Path) -> GenerationDefaults:
    """Read ``folder``/generation_config.json; without one, transformers' defaults.

    Raises:
        ConfigError: the file is malformed.
    """
    fields = _read_generation_fields(folder)
    return GenerationDefaults(
        do_sample=fields.flag("do_sample", False),
        temperature=fields.number("temperature", 1.0, 0.0, 100.0),
        top_k=fields.integer("top_k", 50, 0, 2**31 - 1),
        top_p=fields.number("top_p", 1.0, 0.0, 1.0),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 1e-3, 100.0),
    )


def _read_generation_fields(folder: Path) -> Fields:
    path = folder / "generation_config.json"
    return Fields(str(path), read_json_object(path) if path.exists() else {})


def _find_family(fields: Fields) -> Family:
    model_type = fields.text("model_type", "")
    known = ", ".join(FAMILIES)
    if model_type not in FAMILIES:
        raise ConfigError(f"{fields.source}: model_type is {model_type!r}; hopformer runs {known}")
    family = FAMILIES[model_type]
    expected = {f"{family.architecture}ForCausalLM".casefold(), f"{family.architecture}Model".casefold()}
    architectures = fields.texts("architectures")
    if architectures and not any(name.casefold() in expected for name in architectures):
        named = ", ".join(architectures)
        raise ConfigError(
            f"{fields.source}: architectures is {named}; for model_type {model_type} hopformer runs "
            f"{family.architecture}ForCausalLM"
        )
    return family


def _refuse_other_maths(fields: Fields, family: Family) -> None:
    for key, values in neutral_values(family).items():
        value = fields.get(key)
        if value is not None and value not in values:
            raise ConfigError(
                f"{fields.source}: {key} is {reprlib.repr(value)}, which changes the maths of a "
                f"{family.architecture} model in a way that hopformer does not support"
            )


def _read_sizes(fields: Fields, family: Family) -> dict[str, int]:
    """Every size, by its name in config.json, checked against the others."""
    sizes = {key: fields.integer(key, family.defaults.get(key, 0), *limits) for key, limits in _LIMITS.items()}
    num_heads = sizes["num_attention_heads"]
    if not sizes["num_key_value_heads"] or fields.values.get("num_key_value_heads", 0) is None:
        sizes["num_key_value_heads"] = num_heads  # transformers: null is one KV head for each head, absent the default
    num_kv_heads = sizes["num_key_value_heads"]
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"{fields.source}: num_attention_heads is {num_heads}; expected a multiple of num_key_value_heads, "
            f"{num_kv_heads}"
        )
    if not sizes["head_dim"]:
        if sizes["hidden_size"] % num_heads:
            raise ConfigError(
                f"{fields.source}: hidden_size is {sizes['hidden_size']}; without head_dim it must be a multiple of "
                f"num_attention_heads, {num_heads}"
            )
        sizes["head_dim"] = sizes["hidden_size"] // num_heads
    if sizes["head_dim"] % 2 or sizes["head_dim"] < 4:
        raise ConfigError(f"{fields.source}: head_dim is {sizes['head_dim']}; expected an even number, at least 4")
    return sizes


def _read_dtype(fields: Fields) -> str:
    """The newer spelling wins; a file that has neither gets float32, which holds any of the three exactly."""
    dtype = fields.text("dtype", fields.text("torch_dtype", "float32"))
    if dtype not in DTYPES:
        raise ConfigError(f"{fields.source}: dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    return dtype


def _read_windows(fields: Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    """The sliding window of each layer, 0 for none."""
    if family.windows == "none":
        window, first = 0, 0
    elif family.windows == "all":
        window, first = _read_window(fields), 0
    else:
        window = _read_window(fields) if fields.flag("use_sliding_window", False) else 0
        first = fields.integer("max_window_layers", 28, 0, 2**20)
    windows = tuple(window if index >= first else 0 for index in range(num_layers))
    layer_types = fields.texts("layer_types")
    if not layer_types:
        return windows
    if len(layer_types) != num_layers:
        raise fields.wrong("layer_types", f"{num_layers} of them, one for each layer")
    if set(layer_types) - {"full_attention", "sliding_attention"}:
        raise fields.wrong("layer_types", "only full_attention and sliding_attention")
    typed = tuple(window if layer_type == "sliding_attention" else 0 for layer_type in layer_types)
    if "sliding_attention" in layer_types and not window:
        raise fields.wrong("layer_types", "full_attention only, since no sliding_window is in use")
    if family.windows != "upper" and typed != windows:
        raise fields.wrong("layer_types", f"what a {family.architecture} model does: the same for every layer")
    return typed


def _read_window(fields: Fields) -> int:
    """sliding_window: 4096 where the key is absent, none where it is null; as transformers reads it."""
    if fields.values.get("sliding_window", 0) is None:
        return 0
    return fields.integer("sliding_window", 4096, 1, 2**30)
