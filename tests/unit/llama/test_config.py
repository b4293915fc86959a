"""config.json and generation_config.json: transformers reads them so too, and what we do not compute is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from hopformer.errors import ConfigError
from hopformer.llama.config import GenerationDefaults, ModelConfig, load_config, load_generation_defaults

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SMALL = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Writes a config.json of these keys, and a generation_config.json if asked, and returns their folder."""

    def write(keys: object, generation: object = None) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(keys))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return tmp_path

    return write


def refusal(folder: Path) -> str:
    """What load_config says of a folder that it refuses: one line that names the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def windows_by_transformers(theirs: transformers.PreTrainedConfig) -> tuple[int, ...]:
    window = getattr(theirs, "sliding_window", None) or 0
    layer_types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    return tuple(window if layer_type == "sliding_attention" else 0 for layer_type in layer_types)


def assert_equals_transformers(ours: ModelConfig, folder: Path) -> None:
    theirs = transformers.AutoConfig.from_pretrained(folder)
    pairs = {
        "num_hidden_layers": ours.num_layers,
        "hidden_size": ours.hidden_size,
        "intermediate_size": ours.intermediate_size,
        "num_attention_heads": ours.num_heads,
        "num_key_value_heads": ours.num_kv_heads,
        "vocab_size": ours.vocab_size,
        "rms_norm_eps": ours.rms_norm_eps,
        "max_position_embeddings": ours.max_position_embeddings,
        "tie_word_embeddings": ours.tie_word_embeddings,
        "bos_token_id": ours.bos_token_id,
    }
    assert pairs == {key: getattr(theirs, key) for key in pairs}
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    eos = theirs.eos_token_id
    assert ours.head_dim == head_dim
    assert ours.eos_token_ids == tuple([] if eos is None else eos if isinstance(eos, list) else [eos])
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.kind == theirs.rope_parameters["rope_type"]
    assert ours.sliding_windows == windows_by_transformers(theirs)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_missing_keys_take_the_defaults_of_transformers(model_type: str, write_config: WriteConfig) -> None:
    folder = write_config({"model_type": model_type})
    assert_equals_transformers(load_config(folder), folder)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(
    "keys",
    [
        SMALL,
        SMALL | {"head_dim": 48},
        SMALL | {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "eos_token_id": [7, 9], "bos_token_id": 5},
        SMALL | {"rope_theta": 500000.0, "rope_scaling": None},
        SMALL | {"rope_theta": 500000, "rope_scaling": {"type": "linear", "factor": 2}},
        SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
        SMALL | {"rope_theta": 5e5, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        SMALL | {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE},
    ],
)
def test_given_keys_mean_what_they_do_in_transformers(
    model_type: str, keys: dict[str, object], write_config: WriteConfig
) -> None:
    folder = write_config({"model_type": model_type, **keys})
    assert_equals_transformers(load_config(folder), folder)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_no_kv_heads_at_all_are_as_many_as_query_heads(model_type: str, write_config: WriteConfig) -> None:
    folder = write_config({"model_type": model_type, **SMALL, "num_key_value_heads": None})
    assert load_config(folder).num_kv_heads == 4
    assert_equals_transformers(load_config(folder), folder)


@pytest.mark.parametrize(
    ("model_type", "keys", "windows"),
    [
        ("mistral", {}, (4096, 4096, 4096)),
        ("mistral", {"sliding_window": None}, (0, 0, 0)),
        ("mistral", {"sliding_window": 17}, (17, 17, 17)),
        ("qwen2", {"sliding_window": 17}, (0, 0, 0)),
        ("qwen2", {"sliding_window": 17, "use_sliding_window": True}, (0, 0, 0)),
        ("qwen2", {"sliding_window": 17, "use_sliding_window": True, "max_window_layers": 1}, (0, 17, 17)),
        (
            "qwen3",
            {
                "sliding_window": 17,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (17, 0, 17),
        ),
    ],
)
def test_windows_are_those_of_transformers(
    model_type: str, keys: dict[str, object], windows: tuple[int, ...], write_config: WriteConfig
) -> None:
    folder = write_config({"model_type": model_type, **SMALL, **keys})
    config = load_config(folder)
    assert config.sliding_windows == windows
    assert_equals_transformers(config, folder)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("attention_bias", [False, True])
def test_biases_and_norms_are_those_of_the_model_that_transformers_builds(
    model_type: str, attention_bias: bool, write_config: WriteConfig
) -> None:
    keys: dict[str, object] = {"model_type": model_type, **SMALL, "vocab_size": 11, "intermediate_size": 8}
    if model_type in ("llama", "qwen3"):
        keys["attention_bias"] = attention_bias
    if model_type == "llama":
        keys["mlp_bias"] = not attention_bias
    folder = write_config(keys)
    config = load_config(folder)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    names = set(model.state_dict())
    layer = "model.layers.0."
    assert config.qkv_bias == (f"{layer}self_attn.q_proj.bias" in names)
    assert config.o_bias == (f"{layer}self_attn.o_proj.bias" in names)
    assert config.mlp_bias == (f"{layer}mlp.up_proj.bias" in names)
    assert config.qk_norm == (f"{layer}self_attn.q_norm.weight" in names)


def test_rope_keys_beside_the_sizes_and_inside_mean_the_same(write_config: WriteConfig) -> None:
    inside = write_config({"model_type": "llama", "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 5e5}})
    newer = load_config(inside).rope
    older = load_config(write_config({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE})).rope
    assert newer == older
    assert newer.original_max_position_embeddings == 2048  # the model's limit, since the file names no other


def test_the_dtype_is_read_in_both_spellings(write_config: WriteConfig) -> None:
    assert load_config(write_config({"model_type": "llama", "torch_dtype": "float16"})).dtype == "float16"
    assert load_config(write_config({"model_type": "llama", "dtype": "bfloat16"})).dtype == "bfloat16"
    assert load_config(write_config({"model_type": "llama"})).dtype == "float32"


@pytest.mark.parametrize(
    ("generation", "eos"), [({"eos_token_id": [3, 4]}, (3, 4)), ({"eos_token_id": 8}, (8,)), ({}, (2,)), (None, (2,))]
)
def test_the_end_of_sequence_ids_of_generation_config_win(
    generation: dict[str, object] | None, eos: tuple[int, ...], write_config: WriteConfig
) -> None:
    assert load_config(write_config({"model_type": "llama", "eos_token_id": 2}, generation)).eos_token_ids == eos


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("model_type", {"model_type": "gemma2"}),
        ("model_type", {"model_type": "mixtral", "num_local_experts": 8}),
        ("model_type", {}),
        ("architectures", {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}),
        ("architectures", {"model_type": "llama", "architectures": ["Qwen2ForCausalLM"]}),
        ("quantization_config", {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("hidden_act", {"model_type": "llama", "hidden_act": "gelu"}),
        ("partial_rotary_factor", {"model_type": "llama", "partial_rotary_factor": 0.5}),
        ("partial_rotary_factor", {"model_type": "llama", "rope_parameters": {"partial_rotary_factor": 0.5}}),
        ("residual_multiplier", {"model_type": "llama", "residual_multiplier": 0.22}),
        ("logits_scaling", {"model_type": "llama", "logits_scaling": 8}),
        ("final_logit_softcapping", {"model_type": "llama", "final_logit_softcapping": 30.0}),
        ("num_experts", {"model_type": "qwen3", "num_experts": 128}),
        ("sliding_window", {"model_type": "llama", "sliding_window": 128}),
        ("attention_bias", {"model_type": "mistral", "attention_bias": True}),
        ("mlp_bias", {"model_type": "qwen2", "mlp_bias": True}),
        ("layer_types", {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 32}),
        ("layer_types", {"model_type": "qwen2", "layer_types": ["linear_attention"] * 32}),
        ("layer_types", {"model_type": "qwen2", "layer_types": ["full_attention"]}),
        ("layer_types", {"model_type": "mistral", "layer_types": ["full_attention"] * 32}),
        ("longrope", {"model_type": "llama", "rope_scaling": {"type": "longrope", "factor": 2.0}}),
        ("mrope_section", {"model_type": "qwen2", "rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}),
        ("full_attention", {"model_type": "qwen2", "rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
        ("factor", {"model_type": "llama", "rope_scaling": {"rope_type": "linear"}}),
        ("low_freq_factor", {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 2.0}}),
        ("high_freq_factor", {"model_type": "llama", "rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}}),
        ("beta_fast", {"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 0.5}}),
        ("dtype", {"model_type": "llama", "torch_dtype": "float8_e4m3fn"}),
    ],
)
def test_other_maths_is_refused_by_its_name(key: str, keys: dict[str, object], write_config: WriteConfig) -> None:
    assert key in refusal(write_config(keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"quantization_config": None, "hidden_act": "silu", "partial_rotary_factor": 1.0, "pretraining_tp": 2},
        {"residual_multiplier": 1.0, "num_local_experts": 0, "attn_logit_softcapping": None, "mlp_bias": False},
        {"architectures": ["LlamaForCausalLM"], "attention_dropout": 0.0, "use_cache": True},
        {"architectures": ["LLaMAForCausalLM"], "rope_scaling": {}},
    ],
)
def test_keys_that_change_nothing_are_accepted(keys: dict[str, object], write_config: WriteConfig) -> None:
    assert load_config(write_config({"model_type": "llama", **keys})).num_layers == 32


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**9),
        ("hidden_size", -64),
        ("hidden_size", 64.5),
        ("hidden_size", True),
        ("hidden_size", "64"),
        ("hidden_size", 4098),
        ("vocab_size", [1]),
        ("num_key_value_heads", 5),
        ("num_key_value_heads", 0),
        ("head_dim", 47),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", "1e-6"),
        ("rope_theta", float("inf")),
        ("rope_theta", 0),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"type": "linear", "factor": float("nan")}),
        ("tie_word_embeddings", "yes"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, None]),
        ("architectures", "LlamaForCausalLM"),
        ("model_type", 3),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_key(key: str, value: object, write_config: WriteConfig) -> None:
    message = refusal(write_config({"model_type": "llama", key: value}))
    assert key in message


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00\xff", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in refusal(tmp_path)


def test_a_missing_config_is_one_line(tmp_path: Path) -> None:
    assert "is missing" in refusal(tmp_path)


def test_a_sliding_window_of_nothing_is_refused(write_config: WriteConfig) -> None:
    assert "sliding_window" in refusal(write_config({"model_type": "mistral", "sliding_window": 0}))


def test_generation_defaults_are_read_and_checked(write_config: WriteConfig) -> None:
    keys = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1}
    folder = write_config({}, keys | {"transformers_version": "4.51.0"})
    assert load_generation_defaults(folder) == GenerationDefaults(True, 0.6, 20, 0.95, 0.01, 1.1)
    with pytest.raises(ConfigError, match=r"generation_config.json: top_p is 1.5; expected a number from 0 to 1"):
        load_generation_defaults(write_config({}, {"top_p": 1.5}))


def test_without_a_generation_config_the_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = transformers.GenerationConfig()._get_default_generation_params()
    ours = load_generation_defaults(tmp_path)
    for key in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
        assert getattr(ours, key) == theirs[key]
