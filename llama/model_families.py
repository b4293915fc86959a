"""What transformers takes for granted about each model type that hopformer runs, and what hopformer refuses in it.

A config.json that transformers saved leaves out whatever equals its class's defaults, so these tables decide the maths.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """One model type.

    Attributes:
        architecture: how class names begin: "Llama" for LlamaForCausalLM.
        defaults: sizes by their keys in config.json, for keys that are absent; a size that is missing here is derived.
        bos_token_id, eos_token_ids: for files that name none.
        qkv_bias, o_bias: None where the file's attention_bias decides.
        may_have_mlp_bias: whether the file's mlp_bias counts.
        qk_norm: whether each head of q and k is normalised.
        windows: which layers a sliding window is for: "none", "all", or "upper", those from max_window_layers on.
    """

    architecture: str
    defaults: Mapping[str, int]
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    qkv_bias: bool | None = False
    o_bias: bool | None = False
    may_have_mlp_bias: bool = False
    qk_norm: bool = False
    windows: str = "none"


_SHARED = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
_LLAMA = _SHARED | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048}
_MISTRAL = _SHARED | {
    "vocab_size": 32000,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
}
_QWEN2 = _SHARED | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}
_QWEN3 = _QWEN2 | {"head_dim": 128}

FAMILIES = {
    "llama": Family("Llama", _LLAMA, 1, (2,), qkv_bias=None, o_bias=None, may_have_mlp_bias=True),
    "mistral": Family("Mistral", _MISTRAL, 1, (2,), windows="all"),
    "qwen2": Family("Qwen2", _QWEN2, qkv_bias=True, windows="upper"),
    "qwen3": Family("Qwen3", _QWEN3, qkv_bias=None, o_bias=None, qk_norm=True, windows="upper"),
}

# Keys of relatives of Llama that change the maths, and the values at which they change nothing. Null never does.
_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "quantization_config": (),
    "compression_config": (),
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "per_layer_config": ({},),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "query_pre_attn_scalar": (),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attention_multiplier": (),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "clip_qkv": (),
    "alibi": (False,),
    "use_qk_norm": (False,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "attention_chunk_size": (),
    "num_kv_shared_layers": (0,),
    "hidden_size_per_layer_input": (0,),
}


def neutral_values(family: Family) -> dict[str, tuple[object, ...]]:
    """Keys of config.json that a model of ``family`` may only have with one of these values, or null."""
    values = dict(_NEUTRAL_VALUES)
    if not family.may_have_mlp_bias:
        values["mlp_bias"] = (False,)
    if family.qkv_bias is False:
        values["attention_bias"] = (False,)
    if family.windows == "none":
        values["sliding_window"] = ()
    return values
