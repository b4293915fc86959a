"""Tokenizer: text to token ids and back, from a model folder's tokenizer.json.

A thin owner of the ``tokenizers`` library's tokenizer. It gives the ids that transformers' AutoTokenizer gives on the
same folder, which takes three things beyond loading the file: padding and truncation that were left switched on are
switched off; special tokens that only tokenizer_config.json names are added; and a folder that declares itself a
LlamaTokenizer gets that class's rule for the space before the first word. Whether a beginning-of-sequence token is
added is tokenizer.json's to say (its post-processor); ``add_bos_token`` in tokenizer_config.json is for slow
tokenizers and without effect here, as there.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, pre_tokenizers

from ..errors import TokenizerError
from .foreign_json import read_json_object

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ADDED_TOKEN_FIELDS = ("single_word", "lstrip", "rstrip", "normalized")
_OTHER_FORMATS = ("tokenizer.model", "vocab.json", "tekken.json")


class Tokenizer:
    """One model's vocabulary.

    Attributes:
        special_tokens: name to text of the tokens that tokenizer_config.json names, such as ``bos_token``.
        vocab_size: number of tokens, the added ones included; ids are below it.
        byte_tokens: id to byte value of the tokens that stand for one byte and decode as runs; most have none.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.special_tokens = dict(special_tokens)
        added = backend.get_added_tokens_decoder()
        self.vocab_size = max(backend.get_vocab_size(with_added_tokens=True), *(token_id + 1 for token_id in added), 0)
        self.byte_tokens = _byte_tokens(backend)
        self._added = frozenset(token.content for token in added.values())
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json and, where there is one, tokenizer_config.json.

        Raises:
            TokenizerError: a file is missing or malformed.
        """
        config = read_tokenizer_config(folder)
        backend = _load_backend(folder)
        special_tokens, added = _special_tokens(folder, config)
        if _is_llama_tokenizer(folder, config, backend):
            _set_llama_spaces(backend, config)
            for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
                special_tokens.setdefault(name, text)
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        missing = {token.content: token for token in added if token.content not in known}
        for text in special_tokens.values():
            if text not in known:
                missing.setdefault(text, AddedToken(text, special=True, normalized=False)).special = True
        backend.add_tokens(list(missing.values()))
        return cls(backend, special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; special tokens that it spells become their ids.

        Args:
            text: lone surrogates, as a terminal may pass them, count as U+FFFD.
            add_special_tokens: whether the model's own frame, as a rule a beginning-of-sequence token, is put around.
        """
        if not text.isascii():
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids that name no token have none."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, text: str) -> int | None:
        """Id of the token that is spelled so, or None."""
        return self._backend.token_to_id(text)

    def is_added(self, text: str) -> bool:
        """Whether the text is one of the tokens that were added to the vocabulary, as special tokens are."""
        return text in self._added

    def is_special(self, token_id: int) -> bool:
        """Whether ``decode`` skips the token."""
        return token_id in self._special_ids

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    def _named_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self.token_id(text)

    @property
    def adds_bos(self) -> bool:
        """Whether encoding with special tokens begins with the beginning-of-sequence token."""
        first = self.encode("", add_special_tokens=True)[:1]
        return bool(first) and first[0] == self.bos_token_id

    def stop_ids(self, stop: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """Those stop texts that are one special token, as id sequences: decoded text skips them, so only ids show."""
        found = (self.token_id(text) for text in stop)
        return tuple((token_id,) for token_id in found if token_id is not None and self.is_special(token_id))


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, or nothing where there is none.

    Raises:
        TokenizerError: the file is malformed.
    """
    return _read_if_there(folder / "tokenizer_config.json")


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path, TokenizerError) if path.exists() else {}


def _load_backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        others = [name for name in _OTHER_FORMATS if (folder / name).exists()]
        if others:
            raise TokenizerError(
                f"{folder} has {others[0]} but no tokenizer.json; save the model's fast tokenizer there, "
                "as transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) does"
            ) from error
        raise TokenizerError(f"{folder} has no tokenizer.json; is it the folder of a model?") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower class
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path} is not a tokenizer that the tokenizers library reads: {reason}") from error
    if backend.get_vocab_size() == 0:
        raise TokenizerError(f"{path} has an empty vocabulary; is the download complete?")
    return backend


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], list[AddedToken]]:
    """The named special tokens, and all tokens that the files beside tokenizer.json add to it, in their order."""
    named = dict(config)
    if "added_tokens_decoder" not in config:
        named.update(_read_if_there(folder / "special_tokens_map.json"))
    added: list[AddedToken] = []
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        try:
            entries = sorted((int(token_id), entry) for token_id, entry in decoder.items())
        except (TypeError, ValueError) as error:
            raise TokenizerError(f"{folder}/tokenizer_config.json: added_tokens_decoder is malformed") from error
        added += [token for token in (_added_token(entry) for _, entry in entries) if token is not None]
    names = [*_SPECIAL_NAMES, *(n for n in named if n.endswith("_token") and n not in _SPECIAL_NAMES)]
    tokens = {name: _added_token(named.get(name), special=True) for name in names}
    special = {name: token.content for name, token in tokens.items() if token is not None}
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        special.update({name: token.content for name, entry in extra.items() if (token := _added_token(entry))})
    extras = [_added_token(entry, special=True) for entry in extra] if isinstance(extra, list) else []
    added += [token for token in (*tokens.values(), *extras) if token is not None]
    return special, added


def _added_token(entry: Any, special: bool = False) -> AddedToken | None:
    """A token as these files spell it: its text, or an object with ``content``; None for anything else."""
    if isinstance(entry, str) and entry:
        return AddedToken(entry, special=special, normalized=False)
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not entry["content"]:
        return None
    fields = {name: bool(entry[name]) for name in _ADDED_TOKEN_FIELDS if name in entry}
    return AddedToken(entry["content"], special=special or bool(entry.get("special")), **fields)


def _byte_tokens(backend: tokenizers.Tokenizer) -> dict[int, int]:
    if backend.decoder is None or b'"ByteFallback"' not in backend.decoder.__getstate__():
        return {}
    ids = ((backend.token_to_id(f"<0x{value:02X}>"), value) for value in range(256))
    added = backend.get_added_tokens_decoder()
    return {i: value for i, value in ids if i is not None and not (i in added and added[i].special)}


def _is_llama_tokenizer(folder: Path, config: Mapping[str, Any], backend: tokenizers.Tokenizer) -> bool:
    """Whether the folder asks for SentencePiece as transformers' LlamaTokenizer does it.

    Not when tokenizer.json is byte-level (Llama 3 folders declare the class too), nor for Mistral's models.
    """
    if config.get("tokenizer_class") not in ("LlamaTokenizer", "LlamaTokenizerFast"):
        return False
    if type(backend.model).__name__ != "BPE" or not _byte_tokens(backend):
        return False
    parts = (backend.pre_tokenizer, backend.decoder)
    if any(part is not None and b'"ByteLevel"' in part.__getstate__() for part in parts):
        return False
    return _read_if_there(folder / "config.json").get("model_type") not in ("mistral", "mixtral")


def _set_llama_spaces(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """A space goes before the first word of a text, with ``legacy`` also after each special token, or nowhere."""
    add_prefix_space = config.get("add_prefix_space") is not False
    scheme = "never" if not add_prefix_space else "always" if config.get("legacy") else "first"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if add_prefix_space else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    backend.decoder = decoders.Sequence(steps)
