"""The demo model's tokenizer: byte-level BPE over the training text, digits one by one, ChatML around the messages.

Byte-level, so any Unicode text round-trips; every digit is a token of its own, so numbers are read digit by digit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

# One digit, or a run of letters or of signs with the one space before it, or white space.
_SPLIT = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns the merges from the texts; the three special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads too."""
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in (END_OF_TEXT, IM_START, IM_END)
    }
    config = {
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


class ChatEncoder:
    """Messages to token ids as the chat template writes them, with a mark on every token to be learned."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start_id = _special_id(tokenizer, IM_START)
        self.end_id = _special_id(tokenizer, IM_END)
        self.pad_id = _special_id(tokenizer, END_OF_TEXT)
        self._newline = tokenizer.encode("\n").ids
        self._prompt = [self.start_id, *tokenizer.encode("assistant\n").ids]

    def message(self, message: Mapping[str, str]) -> tuple[list[int], list[bool]]:
        """One whole message; of an assistant's the text and <|im_end|> are learned, of others nothing."""
        if message["role"] != "assistant":
            text = self.tokenizer.encode(f"{message['role']}\n{message['content'].strip()}").ids
            ids = [self.start_id, *text, self.end_id, *self._newline]
            return ids, [False] * len(ids)
        answer = [*self.tokenizer.encode(message["content"].strip()).ids, self.end_id]
        ids = [*self._prompt, *answer, *self._newline]
        return ids, [False] * len(self._prompt) + [True] * len(answer) + [False] * len(self._newline)

    def prompt(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        """The conversation so far and the opening of the assistant's message."""
        return [*(token for message in messages for token in self.message(message)[0]), *self._prompt]


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None, f"{token} is not in the vocabulary"
    return token_id
