"""Loading: devices, dtypes, how many pages memory allows, and a whole folder to something that answers."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import torch
import transformers

from hopformer.errors import DeviceError, UsageError
from hopformer.llama import load as loading
from hopformer.llama.config import ModelConfig, load_config
from hopformer.llama.engine import Request
from hopformer.llama.kv_cache import KVShape
from hopformer.llama.load import (
    LoadOptions,
    count_pages,
    find_device,
    find_dtype,
    find_kv_dtype,
    find_weight_bits,
    free_memory,
    load,
)

CPU = torch.device("cpu")
SHAPE = KVShape(num_layers=2, num_kv_heads=4, head_dim=64, dtype=torch.bfloat16)  # 2 KiB a token
MIB = 2**20
MAX_POSITIONS = 160


@pytest.fixture
def folder(tokenizer_folder: Callable[..., Path]) -> Path:
    """A random model of two layers with a tokenizer."""
    path = tokenizer_folder("byte-level")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture
def config(folder: Path) -> ModelConfig:
    return load_config(folder)


def test_auto_is_the_first_gpu_or_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")


def test_devices_are_found_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cpu") == CPU
    assert find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="--device cuda:2 is not there: torch sees 2 GPUs"):
        find_device("cuda:2")


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(DeviceError, match=f"--device {name} is not there: torch sees 0 GPUs; use --device cpu"):
            find_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "cpu:0", "cuda:x", "cuda:-1", "cuda:1:2", "mps", "CPU"])
def test_a_device_that_means_nothing_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="is unknown; use auto, cpu, cuda or cuda:N"):
        find_device(name)


def test_the_dtype_is_the_checkpoints_unless_another_is_asked_for(config: ModelConfig) -> None:
    assert config.dtype == "bfloat16"
    assert find_dtype("auto", config, CPU) == torch.bfloat16
    assert find_dtype("float32", config, CPU) == torch.float32
    assert find_dtype("float16", config, CPU) == torch.float16
    with pytest.raises(UsageError, match="--dtype fp16 is unknown"):
        find_dtype("fp16", config, CPU)


def test_float16_weights_become_float32_on_a_cpu_only(config: ModelConfig) -> None:
    half = ModelConfig(**{name: getattr(config, name) for name in ModelConfig.__slots__} | {"dtype": "float16"})
    assert find_dtype("auto", half, CPU) == torch.float32
    assert find_dtype("auto", half, torch.device("cuda")) == torch.float16


GPU = torch.device("cuda")


def be_gpu(monkeypatch: pytest.MonkeyPatch, major: int, minor: int, architecture: str | None = None) -> None:
    """Let torch say that it sees this one; with an architecture it is AMD's."""
    properties = SimpleNamespace(major=major, minor=minor, gcnArchName=architecture)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", None if architecture is None else "7.0")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_keys_and_values_are_of_the_models_dtype_unless_another_is_asked_for(dtype: torch.dtype) -> None:
    assert find_kv_dtype("auto", dtype, CPU) == dtype
    assert find_kv_dtype("int8", dtype, CPU) == torch.int8
    assert find_kv_dtype("fp8", dtype, CPU) == torch.float8_e4m3fn


@pytest.mark.parametrize("name", ["", "int4", "float8", "INT8", "bfloat16"])
def test_a_kv_dtype_that_means_nothing_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=f"--kv-dtype {name} is unknown; use auto, int8 or fp8"):
        find_kv_dtype(name, torch.bfloat16, CPU)


def test_fp8_needs_a_gpu_that_converts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability in ((8, 9), (9, 0), (12, 0)):
        be_gpu(monkeypatch, *capability)
        assert find_kv_dtype("fp8", torch.bfloat16, GPU) == torch.float8_e4m3fn
    be_gpu(monkeypatch, 8, 6)
    with pytest.raises(DeviceError, match=r"fp8 needs a GPU of compute capability 8\.9, this one has 8\.6; use int8"):
        find_kv_dtype("fp8", torch.bfloat16, GPU)
    assert find_kv_dtype("int8", torch.bfloat16, GPU) == torch.int8


def test_fp8_on_amd_is_the_kind_that_its_architecture_has(monkeypatch: pytest.MonkeyPatch) -> None:
    be_gpu(monkeypatch, 9, 4, "gfx942:sramecc+:xnack-")
    assert find_kv_dtype("fp8", torch.bfloat16, GPU) == torch.float8_e4m3fnuz
    be_gpu(monkeypatch, 9, 5, "gfx950:sramecc+:xnack-")
    assert find_kv_dtype("fp8", torch.bfloat16, GPU) == torch.float8_e4m3fn
    be_gpu(monkeypatch, 9, 0, "gfx90a")
    with pytest.raises(DeviceError, match="fp8 needs gfx942 or gfx950, this is gfx90a; use int8"):
        find_kv_dtype("fp8", torch.bfloat16, GPU)


def test_free_memory_is_positive_and_no_more_than_the_machine_has() -> None:
    assert 0 < free_memory(CPU) < 2**50


@pytest.mark.parametrize(
    ("max_context", "free_bytes", "num_pages"),
    [
        (1024, 1000 * MIB, 8 * 16),  # eight contexts, though there is room for more
        (1024, 20 * MIB, 128),  # 16 MiB may be used: 128 pages of 128 KiB
        (1024, 10 * MIB, 64),
        (1000, 2.5 * MIB, 16),  # one context, rounded up to whole pages
        (1, 1000 * MIB, 8),
    ],
)
def test_pages_are_as_many_as_contexts_and_memory_allow(max_context: int, free_bytes: float, num_pages: int) -> None:
    assert count_pages(SHAPE, max_context, 64, int(free_bytes)) == num_pages


def test_a_context_that_does_not_fit_is_refused_with_one_that_does() -> None:
    with pytest.raises(DeviceError, match=r"a context of 4096 tokens needs 0\.01 GiB") as error:
        count_pages(SHAPE, 4096, 64, 4 * MIB)
    suggested = re.search(r"--max-context (\d+)", str(error.value))
    assert suggested is not None and int(suggested[1]) == 1600
    assert count_pages(SHAPE, 1600, 64, 4 * MIB) == 25


def test_a_folder_becomes_a_model_that_answers(folder: Path) -> None:
    done: list[tuple[int, int]] = []
    model = load(folder, LoadOptions(device="cpu"), lambda *progress: done.append(progress))
    assert done[-1] == (4, 4) and [count for count, _ in done] == sorted(count for count, _ in done)
    assert model.device == CPU and model.dtype == torch.bfloat16 and model.folder == folder
    assert model.engine.max_context == MAX_POSITIONS
    prompt = model.tokenizer.encode("hello world", add_special_tokens=True)
    outputs = list(model.engine.stream(Request("one", prompt, 12)))
    ids = [token_id for output in outputs for token_id in output.token_ids]
    assert len(ids) == 12 and outputs[-1].finish_reason == "length"
    assert "".join(output.text for output in outputs) == model.tokenizer.decode(ids)


def test_options_choose_dtype_context_and_template(folder: Path) -> None:
    model = load(folder, LoadOptions("cpu", "float32", max_context=33, template="chatml"))
    assert model.dtype == torch.float32 and model.engine.max_context == 33 and model.template.name == "chatml"


def test_narrow_keys_and_values_leave_room_for_more_pages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda device: 100_000)
    with caplog.at_level(logging.INFO, logger="hopformer.llama.load"):
        for name in ("auto", "int8", "fp8"):
            model = load(folder, LoadOptions("cpu", kv_dtype=name))
            assert len(list(model.engine.stream(Request("one", [5, 6, 7], 9)))) == 9
    # 80,000 bytes for pages of 64 tokens, 2 layers, 2 heads of 8 elements, and in int8 a scale of 4 bytes to each
    assert [int(count) for count in re.findall(r"pages=(\d+)", caplog.text)] == [9, 13, 19]


@pytest.mark.parametrize("max_context", [-1, 0, 1, MAX_POSITIONS + 1])
def test_a_context_that_the_model_does_not_have_is_refused(folder: Path, max_context: int) -> None:
    with pytest.raises(UsageError, match=f"--max-context {max_context} is out of range; this model takes 2 to 160"):
        load(folder, LoadOptions("cpu", max_context=max_context))


@pytest.mark.parametrize(("name", "bits"), [("none", None), ("int8", 8), ("int4", 4)])
def test_weights_get_the_bits_that_are_asked_for(name: str, bits: int | None, folder: Path) -> None:
    assert find_weight_bits(name) == bits
    model = load(folder, LoadOptions("cpu", quantize=name))
    assert model.quantize == name and model.dtype == torch.bfloat16
    assert len(list(model.engine.stream(Request("one", [5, 6, 7], 9)))) == 9


@pytest.mark.parametrize("name", ["", "int3", "INT8", "8", "q8_0"])
def test_a_quantisation_that_means_nothing_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=f"--quantize {name} is unknown; use none, int8 or int4"):
        find_weight_bits(name)


def test_too_little_memory_is_one_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda device: 30_000)
    with pytest.raises(DeviceError, match=f"a context of {MAX_POSITIONS} tokens needs"):
        load(folder, LoadOptions("cpu"))
