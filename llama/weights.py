"""TensorFiles: a folder's safetensors, and the names under which a Llama's tensors lie in them.

The safetensors library maps the files: nothing is read but the tensors asked for, and those only when they are touched.
A mapped page that was touched stays resident as long as its mapping, and a mapping lives as long as the scope in which
it was made or as long as a tensor that was read through it. Hence ``TensorFiles.scope``: what is copied or packed in
one leaves memory at its end, and a tensor that is kept holds only the pages touched in its own scope.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError
from .config import ModelConfig
from .foreign_json import read_json_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

NamedShape = tuple[str, tuple[int, ...]]

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # by their names in a header


class TensorFiles:
    """Where each tensor of a folder lies, and the files that are mapped now.

    Args:
        folder: the folder.
        files: tensor name -> file name.
    """

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self.folder = folder
        self._files = dict(files)
        self._handles: dict[str, Any] = {}

    @classmethod
    def open(cls, folder: Path) -> "TensorFiles":
        """Find the tensors of ``folder`` and check header and size of every file that is there.

        ``model.safetensors`` is taken before an index, as transformers does, and without either every *.safetensors.
        A file that the index names may be absent, as long as none of its tensors is read.

        Raises:
            WeightsError: there are none, an index or a header is damaged, or a file is truncated.
        """
        if not (folder / SINGLE_NAME).exists() and (folder / INDEX_NAME).exists():
            index = read_index(folder / INDEX_NAME)
            for file in sorted(set(index.values())):
                if (folder / file).exists():
                    _map(folder / file)
            return cls(folder, index)
        single = folder / SINGLE_NAME
        paths = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
        if not paths:
            raise WeightsError(f"{folder} has no *.safetensors file; other formats of weights are not read")
        files: dict[str, str] = {}
        for path in paths:
            for name in _map(path).keys():  # noqa: SIM118 - not a dict
                if files.setdefault(name, path.name) != path.name:
                    raise WeightsError(f"{path}: tensor {name} is in {files[name]} too; an index must say which counts")
        return cls(folder, files)

    @property
    def names(self) -> Collection[str]:
        """The tensors' names as the files have them."""
        return self._files.keys()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Files mapped inside are unmapped at the end, but for those that a tensor still looks into."""
        try:
            yield
        finally:
            self._handles.clear()

    def has(self, name: str) -> bool:
        """Whether the tensor ``name`` is known, and the file that it lies in is there."""
        stored = _stored_name(name, self._files)
        return stored is not None and (self.folder / self._files[stored]).exists()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor ``name``, from its file's header.

        Raises:
            WeightsError: it is missing.
        """
        return self._find(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which the tensor ``name`` is stored.

        Raises:
            WeightsError: it is missing, or none of bfloat16, float16 and float32.
        """
        return self._find(name).dtype

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor ``name`` as ``dtype``: a view of the mapped file where it is stored so, else converted.

        Raises:
            WeightsError: it is missing, of another shape or not of a floating dtype that we read.
        """
        found = self._find(name)
        if found.shape != tuple(shape):
            raise WeightsError(
                f"{found.path}: tensor {found.name} has shape {list(found.shape)}; config.json makes it {list(shape)}"
            )
        stored = found.dtype  # before anything is mapped: a dtype that we do not read is refused
        tensor: Tensor = found.handle.get_tensor(found.name)
        assert tensor.dtype == stored
        return tensor.to(dtype)

    def _find(self, name: str) -> "_Found":
        stored = _stored_name(name, self._files)
        if stored is None:
            raise WeightsError(f"{self.folder}: tensor {name} is in none of the *.safetensors files")
        path = self.folder / self._files[stored]
        if path.name not in self._handles:
            if not path.exists():
                raise WeightsError(f"{path} is missing; it holds tensor {stored}; fetch the model again")
            self._handles[path.name] = _map(path)
        handle = self._handles[path.name]
        try:
            return _Found(path, stored, handle, handle.get_slice(stored))
        except SafetensorError:
            raise WeightsError(f"{path}: tensor {stored} is missing, though {INDEX_NAME} says it is there") from None


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor in a mapped file; ``view`` is the library's, which knows its header and has read nothing else."""

    path: Path
    name: str
    handle: Any
    view: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.view.get_shape())

    @property
    def dtype(self) -> torch.dtype:
        stored = self.view.get_dtype()
        if stored not in _DTYPES:
            raise WeightsError(
                f"{self.path}: tensor {self.name} is stored as {stored}; expected one of {', '.join(_DTYPES)}"
            )
        return _DTYPES[stored]


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, from a model.safetensors.index.json.

    Raises:
        WeightsError: it is malformed, or names a file outside its folder.
    """
    weight_map = read_json_object(path, WeightsError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{path} has no weight_map; expected an object of tensor names and file names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise WeightsError(f"{path}: tensor {name} is in {file!r}; expected a *.safetensors file beside the index")
    return weight_map


def span_files(
    index: Mapping[str, str], config: ModelConfig, start: int, end: int, embed: bool, head: bool
) -> tuple[str, ...]:
    """The files of ``index`` (tensor name -> file name) that the layers ``start .. end`` need, sorted.

    Args:
        embed, head: whether the embedding, and the last norm with the projection to the vocabulary, are wanted too.

    Raises:
        WeightsError: a tensor that is needed is not in the index.
    """
    tensors = [tensor for layer in range(start, end) for tensor in layer_tensors(config, layer).values()]
    if embed:
        tensors.append(embed_tensor(config))
    if head:
        tensors.extend(head_tensors(config, index).values())
    files = set()
    for name, _ in tensors:
        stored = _stored_name(name, index)
        if stored is None:
            raise WeightsError(f"{INDEX_NAME} does not name tensor {name}")
        files.add(index[stored])
    return tuple(sorted(files))


def embed_tensor(config: ModelConfig) -> NamedShape:
    """The embedding: [V, E]."""
    return "model.embed_tokens.weight", (config.vocab_size, config.hidden_size)


def head_tensors(config: ModelConfig, stored: Collection[str] = ()) -> dict[str, NamedShape]:
    """``norm`` [E] and ``head`` [V, E], which is the embedding's weight when the two are tied.

    Args:
        stored: names that the files have. A head among them is used even where config.json ties it: equal, it changes
            nothing, and different, config.json is wrong; transformers decides the same.
    """
    name, shape = "lm_head.weight", (config.vocab_size, config.hidden_size)
    tied = config.tie_word_embeddings and name not in stored
    return {
        "norm": ("model.norm.weight", (config.hidden_size,)),
        "head": embed_tensor(config) if tied else (name, shape),
    }


def layer_tensors(config: ModelConfig, index: int) -> dict[str, NamedShape]:
    """One layer's tensors by role: input_norm, q, k, v, o, post_norm, gate, up, down, q_norm, k_norm.

    A projection's bias is under its role and ``_bias``; roles that the model lacks are absent.
    """
    prefix = f"model.layers.{index}."
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = {
        "q": ("self_attn.q_proj", q_size, hidden, config.qkv_bias),
        "k": ("self_attn.k_proj", kv_size, hidden, config.qkv_bias),
        "v": ("self_attn.v_proj", kv_size, hidden, config.qkv_bias),
        "o": ("self_attn.o_proj", hidden, q_size, config.o_bias),
        "gate": ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        "up": ("mlp.up_proj", inner, hidden, config.mlp_bias),
        "down": ("mlp.down_proj", hidden, inner, config.mlp_bias),
    }
    tensors: dict[str, NamedShape] = {
        "input_norm": (f"{prefix}input_layernorm.weight", (hidden,)),
        "post_norm": (f"{prefix}post_attention_layernorm.weight", (hidden,)),
    }
    for role, (name, num_out, num_in, has_bias) in projections.items():
        tensors[role] = (f"{prefix}{name}.weight", (num_out, num_in))
        if has_bias:
            tensors[f"{role}_bias"] = (f"{prefix}{name}.bias", (num_out,))
    if config.qk_norm:
        tensors["q_norm"] = (f"{prefix}self_attn.q_norm.weight", (config.head_dim,))
        tensors["k_norm"] = (f"{prefix}self_attn.k_norm.weight", (config.head_dim,))
    return tensors


def _stored_name(name: str, stored: Collection[str]) -> str | None:
    """The name under which the tensor is stored: a base model that was saved alone lacks the prefix."""
    if name in stored:
        return name
    bare = name.removeprefix("model.")
    return bare if bare in stored else None


def _map(path: Path) -> Any:
    """The file, mapped. The library refuses a header that does not describe the file's bytes exactly, gaps included.

    Raises:
        WeightsError: it is damaged, truncated or cannot be read.
    """
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {_find_damage(path) or error}; fetch it again") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None


def _find_damage(path: Path) -> str | None:
    """What the library does not say: which tensor the end of a truncated file cuts off. None if it is something else.

    The format: 8 bytes, the header's length; the header, JSON of dtype, shape and data_offsets; the tensors' bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > size - 8:
            return f"its {size} bytes end within the header, or the header is garbage"
        try:
            header = json.loads(file.read(header_bytes))
            header.pop("__metadata__", None)
            ends = {name: 8 + header_bytes + entry["data_offsets"][1] for name, entry in header.items()}
            name = min((name for name, end in ends.items() if end > size), key=ends.__getitem__, default=None)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return None
    return None if name is None else f"tensor {name} ends at byte {ends[name]}, and the file has {size}"
