"""The contenders compute the same: otherwise their times could not be compared."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from hopformer.bench import baseline_llama_cpp, baseline_transformers
from hopformer.bench.baseline_llama_cpp import open_llama_cpp
from hopformer.bench.baseline_transformers import open_transformers
from hopformer.bench.contender import Absent, Contender, HopformerContender, Workload

ROOT = Path(__file__).resolve().parents[3]
NUM_TOKENS = 6
# How far behind the best logit a greedy token may lie: rounding in float32, and llama.cpp's tables and approximations
OURS, LLAMA_CPP = 1e-3, 5e-2
# The same on average with fewer bits; tokens drawn at random lie behind by 8
QUANTIZED = {"int8": 0.2, "int4": 3.0}

MakeWorkload = Callable[..., Workload]


def prompt_of(length: int, vocab_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(vocab_size, (length,), generator=generator).tolist()


def assert_draws_greedily(contender: Contender, load: Workload, tolerance: float) -> None:
    """Every token drawn is one that transformers' logits put first, to ``tolerance``."""
    assert behind_the_best(contender, load).max() < tolerance


def behind_the_best(contender: Contender, load: Workload) -> torch.Tensor:
    """How far behind the best of transformers' logits each token drawn lies; every sequence is on an empty cache."""
    all_behind = []
    model = transformers.AutoModelForCausalLM.from_pretrained(load.folder, dtype=load.dtype)
    for length in (1, 17, 65, 97):
        prompt = prompt_of(length, load.config.vocab_size)
        contender.reset()
        drawn = [contender.prefill(prompt), *contender.decode(NUM_TOKENS - 1)]
        assert len(drawn) == NUM_TOKENS
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *drawn[:-1]]])).logits[0, length - 1 :]
        behind = logits.max(dim=-1).values - logits[torch.arange(NUM_TOKENS), torch.tensor(drawn)]
        all_behind.append(behind)
    contender.close()
    return torch.cat(all_behind)


def test_hopformer_draws_greedily(workload: MakeWorkload) -> None:
    load = workload()
    assert_draws_greedily(HopformerContender.open(load), load, OURS)


def test_transformers_draws_greedily(workload: MakeWorkload) -> None:
    load = workload("qwen3")
    theirs = open_transformers(load)
    assert not isinstance(theirs, Absent)
    assert_draws_greedily(theirs, load, OURS)


@pytest.mark.parametrize(
    "kind", ["llama", "biased", "wide-heads", "linear-rope", "llama3-rope", "mistral", "qwen2", "qwen3"]
)
def test_llama_cpp_draws_greedily_from_the_exported_model(kind: str, workload: MakeWorkload) -> None:
    pytest.importorskip("llama_cpp")
    load = workload(kind)
    theirs = open_llama_cpp(load)
    assert not isinstance(theirs, Absent)
    assert_draws_greedily(theirs, load, LLAMA_CPP)


@pytest.mark.parametrize(("quantize", "theirs"), [("int8", "Q8_0"), ("int4", "Q4_0")])
def test_quantised_contenders_draw_what_is_nearly_the_best(quantize: str, theirs: str, workload: MakeWorkload) -> None:
    pytest.importorskip("llama_cpp")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    load = replace(workload(**sizes, num_hidden_layers=1), quantize=quantize)
    llama_cpp = open_llama_cpp(load)
    assert not isinstance(llama_cpp, Absent)
    ours = HopformerContender.open(load)
    transformers_ = open_transformers(load)
    assert not isinstance(transformers_, Absent)
    assert (ours.weights, llama_cpp.weights, transformers_.weights) == (quantize, theirs, "float32")
    for contender in (ours, llama_cpp):
        assert behind_the_best(contender, load).mean() < QUANTIZED[quantize]


def test_a_prompt_that_the_prefix_cache_knows_is_not_measured(workload: MakeWorkload) -> None:
    load = workload()
    ours = HopformerContender.open(load)
    prompt = prompt_of(97, load.config.vocab_size)
    ours.prefill(prompt)
    ours.reset()
    with pytest.raises(AssertionError, match="measures nothing"):
        ours.prefill(prompt)


def test_a_baseline_that_is_not_installed_says_how_to_get_it(
    workload: MakeWorkload, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = workload()
    for module in (baseline_transformers, baseline_llama_cpp):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    for absent, name in ((open_transformers(load), "transformers"), (open_llama_cpp(load), "llama.cpp")):
        assert isinstance(absent, Absent)
        assert absent.name == name and "pip install 'hopformer[bench]'" in absent.reason


def test_a_model_that_cannot_be_exported_says_why(workload: MakeWorkload) -> None:
    pytest.importorskip("llama_cpp")
    absent = open_llama_cpp(workload("mistral", sliding_window=24))
    assert isinstance(absent, Absent) and "sliding windows" in absent.reason


def test_a_model_that_llama_cpp_does_not_quantise_is_absent(
    workload: MakeWorkload, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    monkeypatch.setattr(llama_cpp, "llama_model_quantize", lambda source, target, params: 1)
    absent = open_llama_cpp(replace(workload(), quantize="int8"))
    assert isinstance(absent, Absent) and absent.reason == "it cannot quantise the exported model to Q8_0"


@pytest.mark.slow
def test_transformers_loads_where_the_repository_root_is_on_the_path(workload: MakeWorkload) -> None:
    load = workload()
    program = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})  # as python -m hopformer does there
        from pathlib import Path
        import torch
        from hopformer.bench.baseline_transformers import open_transformers
        from hopformer.bench.contender import Workload
        from hopformer.llama.config import load_config
        folder = Path({str(load.folder)!r})
        before = sys.path[:]
        model = open_transformers(Workload(folder, load_config(folder), torch.float32, 256, 2, folder))
        print(model.prefill([1, 2, 3]), sys.path == before)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    expected = open_transformers(load)
    assert not isinstance(expected, Absent)
    assert done.stdout.split() == [str(expected.prefill([1, 2, 3])), "True"]
