"""For every test: a clean path, two threads, and tokenizers of the kinds that Llama-family models ship, trained here.

The repository root must not be on the path. Its folders are the package `hopformer`, but `python -m pytest` would make
`kernels` importable under its own name too, which is another distribution's name, and one that transformers looks for.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]

hypothesis.settings.register_profile("untimed", deadline=None)  # no timing decides a test
hypothesis.settings.load_profile("untimed")

torch.set_num_threads(2)  # what CI has; more only makes small models slower

CORPUS = [
    "hello world, hello there, how are you?\n",
    "the stop is here: STOP END\n",
    "naïve café über déjà vu 日本語 日本\n",
    "user assistant system [INST] Be brief. [/INST] ### Instruction: Paris is in France.\n",
] * 4


def _byte_level() -> tokenizers.Tokenizer:
    """As Llama 3 and Qwen: every byte has a token, no character is ever missing."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2: a space before the first word, which decoding strips; bytes for characters that have no token."""
    byte_names = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special_tokens = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, limit_alphabet=40, special_tokens=[*special_tokens, *byte_names], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special_tokens]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _metaspace() -> tokenizers.Tokenizer:
    """As SentencePiece models that newer libraries saved: the metaspace is pre-tokenizer and decoder."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def trained_tokenizers() -> dict[str, tokenizers.Tokenizer]:
    """Tokenizers by kind: byte-level, byte-fallback, metaspace. Shared: do not change them."""
    return {"byte-level": _byte_level(), "byte-fallback": _byte_fallback(), "metaspace": _metaspace()}


@pytest.fixture
def tokenizer_folder(tmp_path: Path, trained_tokenizers: dict[str, tokenizers.Tokenizer]) -> Callable[..., Path]:
    """``tokenizer_folder(kind, added=(), **config)`` writes tokenizer.json and tokenizer_config.json, and says where.

    ``added`` are special tokens put into tokenizer.json; the config is that of a plain fast tokenizer, with ``config``
    over it, where None takes a key away.
    """

    def write(kind: str, added: tuple[str, ...] = (), **config: Any) -> Path:
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        tokenizer = tokenizers.Tokenizer.from_str(trained_tokenizers[kind].to_str())
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in added])
        tokenizer.save(str(folder / "tokenizer.json"))
        defaults = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        content = {key: value for key, value in {**defaults, **config}.items() if value is not None}
        (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return write
