"""A whole decode step as a GPU would get it: a model on the meta device, whose kernels are compiled and not launched.

A tensor of the meta device has no values, so that whatever would wait for one, which a CUDA graph cannot, fails here.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from hopformer.bench.offline_driver import compiling_for, counting_launches
from hopformer.llama.assemble import ModelPart, Placement, load_model
from hopformer.llama.config import load_config
from hopformer.llama.decode_step import StaticDecode
from hopformer.llama.kv_cache import KVCache, KVShape

pytestmark = pytest.mark.aot

META = torch.device("meta")
# What a step asks of torch without launching a kernel: memory, views and shapes
FREE = {"empty", "empty_like", "new_empty", "view", "slice", "select", "detach", "alias", "t", "transpose", "split",
        "as_strided", "_unsafe_view", "permute", "expand", "unsqueeze", "squeeze", "_to_copy"}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts the operations that torch carries out inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four layers with the proportions of Llama-3.2-1B."""
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=1024,
    )
    path: Path = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def run_step(
    folder: Path, end: int, batch_size: int, weight_bits: int | None, kv_dtype: torch.dtype
) -> tuple[Counter[str], Counter[str]]:
    """Compile a step of the layers 0 .. end for an H100; what torch carried out beside the kernels, and these."""
    config = load_config(folder)
    part = ModelPart(0, end)
    placement = Placement(META, torch.bfloat16, 1024, weight_bits)
    with compiling_for(GPUTarget("cuda", 90, 32)) as compiled:
        model = load_model(folder, config, part, placement)
        cache = KVCache(KVShape(end, 8, 64, kv_dtype), 64, 64, META)
        step = StaticDecode(model, cache, 1024, batch_size)
        with Operations() as operations, counting_launches() as launches:
            step.run()
    assert "_decode_kernel" in {one.name for one in compiled}
    return operations.counts, launches


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=["bf16", "int8", "fp8"])
@pytest.mark.parametrize("weight_bits", [None, 8, 4])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_no_value_is_waited_for(folder: Path, batch_size: int, weight_bits: int | None, kv_dtype: torch.dtype) -> None:
    _, launches = run_step(folder, 2, batch_size, weight_bits, kv_dtype)
    assert launches["_decode_kernel"] == 2, "attention is one launch a layer"


def test_a_layer_of_a_small_step_is_six_launches_and_nothing_else(folder: Path) -> None:
    two, of_two = run_step(folder, 2, 1, None, torch.bfloat16)
    four, of_four = run_step(folder, 4, 1, None, torch.bfloat16)
    assert set(four - two) <= FREE
    assert of_four - of_two == {"_gemv_kernel": 8, "_rope_kv_write_kernel": 2, "_decode_kernel": 2}
