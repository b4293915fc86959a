"""RoPE's parameters from config.json, in both spellings. The maths: rope.py.

Older files have rope_theta beside a rope_scaling object, whose kind is under type or rope_type; newer ones have all of
it in rope_parameters. Where a file has more than one, the choice is transformers'.
"""

from ..errors import ConfigError
from .foreign_json import Fields
from .rope import ROPE_KINDS, RopeConfig

DEFAULT_THETA = 10000.0
MIN_THETA, MAX_THETA = 1.001, 1e15  # wavelengths must grow; the largest in use is 1e11
MAX_FACTOR = 1e6  # a context a million times longer than trained is a typing error

_KEYS = {
    *("type", "rope_type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor"),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate", "attention_factor"),
    *("mscale", "mscale_all_dim", "finetuned"),
}
_REQUIRED_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def read_rope(fields: Fields, max_position_embeddings: int) -> RopeConfig:
    """The RoPE of a config.json whose keys are ``fields``.

    Raises:
        ConfigError: a kind or a parameter that is not supported, or a value out of range.
    """
    theta = fields.number("rope_theta", DEFAULT_THETA, MIN_THETA, MAX_THETA)
    rope = _find_parameters(fields)
    if rope is None:
        return RopeConfig(theta=theta)
    for key in rope.values:
        if key not in _KEYS:
            raise ConfigError(f"{rope.source}: {key} is not a RoPE parameter that hopformer supports")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in ROPE_KINDS:
        raise ConfigError(f"{rope.source}: rope_type is {kind!r}; hopformer computes {', '.join(ROPE_KINDS)}")
    for key in _REQUIRED_KEYS.get(kind, ()):
        if rope.get(key) is None:
            raise ConfigError(f"{rope.source}: {key} is missing; rope_type {kind} needs it")
    if rope.number("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0:
        raise rope.wrong("partial_rotary_factor", "1: hopformer rotates whole heads")
    config = _build(kind, rope, theta, fields, max_position_embeddings)
    if config.high_freq_factor <= config.low_freq_factor:
        raise rope.wrong("high_freq_factor", f"more than low_freq_factor, {config.low_freq_factor:g}")
    if config.beta_fast < config.beta_slow:
        raise rope.wrong("beta_fast", f"at least beta_slow, {config.beta_slow:g}")
    return config


def _find_parameters(fields: Fields) -> Fields | None:
    for key in ("rope_scaling", "rope_parameters"):
        rope = fields.object(key)
        if rope is not None and rope.values:
            return rope
    return None


def _build(kind: str, rope: Fields, theta: float, fields: Fields, max_position_embeddings: int) -> RopeConfig:
    trained_length = max_position_embeddings
    if kind in ("llama3", "yarn"):  # beside the model's sizes, else with RoPE's parameters, else the model's limit
        inner = rope.integer("original_max_position_embeddings", trained_length, 1, 2**30)
        trained_length = fields.integer("original_max_position_embeddings", inner, 1, 2**30)
    implied_factor = max(1.0, max_position_embeddings / trained_length)  # where yarn's is null
    attention_factor = rope.number("attention_factor", 1.0, 0.0, MAX_FACTOR)
    return RopeConfig(
        kind=kind,
        theta=rope.number("rope_theta", theta, MIN_THETA, MAX_THETA),
        factor=1.0 if kind == "default" else rope.number("factor", implied_factor, 1.0, MAX_FACTOR),
        original_max_position_embeddings=trained_length,
        low_freq_factor=rope.number("low_freq_factor", 1.0, 1e-3, MAX_FACTOR),
        high_freq_factor=rope.number("high_freq_factor", 4.0, 1e-3, MAX_FACTOR),
        beta_fast=rope.number("beta_fast", 32.0, 0.0, MAX_FACTOR) or 32.0,
        beta_slow=rope.number("beta_slow", 1.0, 0.0, MAX_FACTOR) or 1.0,
        truncate=rope.flag("truncate", True),
        attention_factor=None if rope.get("attention_factor") is None else attention_factor,
        mscale=rope.number("mscale", 0.0, 0.0, MAX_FACTOR),
        mscale_all_dim=rope.number("mscale_all_dim", 0.0, 0.0, MAX_FACTOR),
    )
