"""Tensors of a folder: read in place, from one file or many, and whatever is wrong with them is one line."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hopformer.errors import WeightsError
from hopformer.llama.config import ModelConfig, load_config
from hopformer.llama.weights import (
    INDEX_NAME,
    TensorFiles,
    embed_tensor,
    head_tensors,
    layer_tensors,
    read_index,
    span_files,
)

TINY = {
    "vocab_size": 13,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, object]] = {
    "Llama": {},
    "Mistral": {"head_dim": 10},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 16, "attention_bias": True},
}

SaveModel = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Saves a random tiny model of a family as transformers does, and returns its folder."""

    def save(family: str = "Llama", shard_size: str = "1GB", **changes: object) -> Path:
        config = getattr(transformers, f"{family}Config")(**TINY, **FAMILIES[family], **changes)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        model.save_pretrained(tmp_path, max_shard_size=shard_size)
        return tmp_path

    return save


def tensors_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model needs."""
    tensors = [tensor for index in range(config.num_layers) for tensor in layer_tensors(config, index).values()]
    return dict([*tensors, embed_tensor(config), *head_tensors(config).values()])


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, read by the safetensors library at once."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_header(path: Path, header: object, body: bytes) -> Path:
    """A safetensors file of this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path.parent


@pytest.mark.parametrize("shard_size", ["1GB", "4KB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_saved_model_is_found_under_its_role(
    family: str, shard_size: str, save_model: SaveModel
) -> None:
    folder = save_model(family, shard_size)
    assert (folder / INDEX_NAME).exists() == (shard_size == "4KB")
    needed = tensors_of(load_config(folder))
    files, expected = TensorFiles.open(folder), stored(folder)
    assert set(files.names) == set(expected) == set(needed)
    for name, shape in needed.items():
        assert files.shape(name) == shape
        assert files.dtype(name) == torch.float32
        assert torch.equal(files.read(name, shape, torch.float32), expected[name])


def test_the_roles_point_at_the_modules_they_are_named_after(save_model: SaveModel) -> None:
    config = load_config(save_model("Qwen3"))
    names = {role: name.removeprefix("model.layers.2.") for role, (name, _) in layer_tensors(config, 2).items()}
    modules = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    assert {role: names[f"{role}_bias"] for role in modules} == {role: f"{at}.bias" for role, at in modules.items()}
    modules |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    modules |= {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
    modules |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    assert {role: names[role] for role in modules} == {role: f"{module}.weight" for role, module in modules.items()}
    assert len(names) == len(modules) + 4


def test_many_files_without_an_index_are_one_model(save_model: SaveModel) -> None:
    folder = save_model("Llama", "4KB")
    (folder / INDEX_NAME).unlink()
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert set(TensorFiles.open(folder).names) == set(tensors_of(load_config(folder)))


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "two.safetensors")
    assert "tensor a is in one.safetensors too" in refusal(lambda: TensorFiles.open(tmp_path))


def test_a_base_model_that_was_saved_alone_has_no_prefix(tmp_path: Path) -> None:
    model = transformers.LlamaModel(transformers.LlamaConfig(**TINY))
    model.save_pretrained(tmp_path)
    config, files = load_config(tmp_path), TensorFiles.open(tmp_path)
    name, shape = layer_tensors(config, 1)["q"]
    assert name not in files.names
    assert torch.equal(files.read(name, shape, torch.float32), model.layers[1].self_attn.q_proj.weight)


def test_a_tied_head_is_the_embedding_unless_the_files_have_one(save_model: SaveModel) -> None:
    folder = save_model("Qwen2")
    config = load_config(folder)
    names = TensorFiles.open(folder).names
    assert head_tensors(config, names)["head"] == embed_tensor(config)
    assert head_tensors(config, [*names, "lm_head.weight"])["head"] == ("lm_head.weight", (13, 24))


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16, torch.float32])
def test_a_dtype_that_fits_is_read_in_place_and_another_is_converted(saved: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(300, 17).to(saved)
    save_file({"a": values}, tmp_path / "model.safetensors")
    for asked in (torch.bfloat16, torch.float16, torch.float32):
        tensor = TensorFiles.open(tmp_path).read("a", (300, 17), asked)
        assert torch.equal(tensor, values.to(asked)) and tensor.dtype == asked
        assert mapped_file_of(tensor) == ("model.safetensors" if asked == saved else None)


def mapped_file_of(tensor: Tensor) -> str | None:
    """The file that the tensor's bytes are mapped from, by Linux' list of mappings; None for memory of its own."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in fields[0].split("-"))
        if start <= tensor.data_ptr() < end and fields[4] != "0":
            return Path(fields[5]).name
    return None


def test_a_kept_tensor_outlives_its_scope_and_a_dropped_one_is_unmapped(tmp_path: Path) -> None:
    values = {"kept": torch.randn(64, 64), "dropped": torch.randn(64, 64)}
    save_file(values, tmp_path / "model.safetensors")
    files = TensorFiles.open(tmp_path)
    with files.scope():
        dropped = files.read("dropped", (64, 64), torch.float32)
    assert mapped_file_of(dropped) == "model.safetensors"
    with files.scope():
        kept = files.read("kept", (64, 64), torch.float32)
    address = dropped.data_ptr()
    del dropped
    mappings = Path("/proc/self/maps").read_text()
    assert mappings.count(str(tmp_path)) == 1  # the kept one's: the other left with its last tensor
    assert address != kept.data_ptr() and torch.equal(kept, values["kept"])
    del kept
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_span_needs_only_the_files_of_its_layers(save_model: SaveModel) -> None:
    folder = save_model("Llama", "4KB")
    config, index = load_config(folder), read_index(folder / INDEX_NAME)
    needed = {name for name, _ in layer_tensors(config, 1).values()}
    files = span_files(index, config, 1, 2, embed=False, head=False)
    assert set(files) == {index[name] for name in needed} < set(index.values())
    with_ends = span_files(index, config, 1, 2, embed=True, head=True)
    ends = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert set(with_ends) == set(files) | {index[name] for name in ends}
    for path in folder.glob("*.safetensors"):
        if path.name not in files:
            path.unlink()
    span = TensorFiles.open(folder)
    for name, shape in layer_tensors(config, 1).values():
        assert span.read(name, shape, torch.float32).shape == shape
    message = refusal(lambda: span.read("lm_head.weight", (13, 24), torch.float32))
    assert index["lm_head.weight"] in message and "lm_head.weight" in message and "is missing" in message


def test_a_span_whose_tensor_the_index_lacks_is_refused(save_model: SaveModel) -> None:
    config = load_config(save_model("Llama"))
    assert "model.layers.0." in refusal(lambda: span_files({"a": "b"}, config, 0, 1, embed=False, head=False))


def test_a_file_cut_anywhere_is_refused_at_open_by_its_name(save_model: SaveModel) -> None:
    folder = save_model("Llama")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    for length in (0, 1, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        message = refusal(lambda: TensorFiles.open(folder))
        assert str(path) in message
        assert ("ends at byte" in message) == (length >= header_end)


def test_a_truncated_file_names_the_tensor_that_is_cut(tmp_path: Path) -> None:
    save_file(
        {"first": torch.zeros(100), "second": torch.zeros(100), "third": torch.zeros(100)}, tmp_path / "a.safetensors"
    )
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-500])
    size = path.stat().st_size
    assert f"tensor second ends at byte {size + 100}, and the file has {size}" in refusal(
        lambda: TensorFiles.open(tmp_path)
    )


def test_a_truncated_shard_is_refused_at_open(save_model: SaveModel) -> None:
    folder = save_model("Llama", "4KB")
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard.name in refusal(lambda: TensorFiles.open(folder))


ONE_FLOAT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
DAMAGED_HEADERS: Mapping[str, tuple[object, bytes]] = {
    "not json": (b"{]", b""),
    "not an object": ([1, 2], b""),
    "not utf-8": (b'{"\xff": 1}', b""),
    "overlapping": ({"a": ONE_FLOAT, "b": ONE_FLOAT}, bytes(4)),
    "beyond the end": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
    "negative offset": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
    "backwards": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    "shape of other size": ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}, bytes(4)),
    "huge shape": ({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
    "gap": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "trailing bytes": ({"a": ONE_FLOAT}, bytes(9)),
    "unknown dtype": ({"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
}


@pytest.mark.parametrize("kind", DAMAGED_HEADERS)
def test_a_damaged_header_is_one_line(kind: str, tmp_path: Path) -> None:
    write_header(tmp_path / "model.safetensors", *DAMAGED_HEADERS[kind])
    message = refusal(lambda: TensorFiles.open(tmp_path))
    assert str(tmp_path / "model.safetensors") in message and "damaged" in message


def test_garbage_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 1000)
    assert "header is garbage" in refusal(lambda: TensorFiles.open(tmp_path))


def test_an_asked_tensor_that_is_wrong_is_named_with_its_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "ids": torch.zeros(2, dtype=torch.int64)}, tmp_path / "model.safetensors")
    files = TensorFiles.open(tmp_path)
    path = tmp_path / "model.safetensors"
    assert refusal(lambda: files.read("a", (3, 2), torch.float32)) == (
        f"{path}: tensor a has shape [2, 3]; config.json makes it [3, 2]"
    )
    assert "tensor ids is stored as I64; expected one of BF16, F16, F32" in refusal(
        lambda: files.read("ids", (2,), torch.float32)
    )
    assert "tensor b is in none" in refusal(lambda: files.read("b", (2,), torch.float32))


def test_an_index_that_names_a_tensor_which_its_file_lacks_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}))
    files = TensorFiles.open(tmp_path)
    assert files.read("a", (2,), torch.float32).tolist() == [0, 0]
    message = refusal(lambda: files.read("b", (2,), torch.float32))
    assert "x.safetensors" in message and "tensor b is missing" in message


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}']
    + [json.dumps({"weight_map": {"a": file}}) for file in (3, "../x.safetensors", "/x.safetensors", "x.bin", "")],
)
def test_a_damaged_index_is_one_line(index: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(index)
    assert INDEX_NAME in refusal(lambda: TensorFiles.open(tmp_path))


def test_a_folder_without_safetensors_says_so(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "has no *.safetensors file" in refusal(lambda: TensorFiles.open(tmp_path))


LOAD_AND_MEASURE = """
import sys
from pathlib import Path
import torch
from hopformer.llama.config import load_config
from hopformer.llama.weights import TensorFiles, embed_tensor, layer_tensors

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

folder = Path(sys.argv[1])
config, files = load_config(folder), TensorFiles.open(folder)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before, num_bytes, kept = status("VmRSS"), 0, []
for index in range(config.num_layers):
    with files.scope():
        for tensor in layer_tensors(config, index).values():
            kept.append(files.read(*tensor, torch.bfloat16).clone())
            num_bytes += kept[-1].nbytes
with files.scope():
    embed = files.read(*embed_tensor(config), torch.bfloat16)
num_bytes += embed.nbytes
embed.view(-1)[::1024].clone()  # touches every page
print(num_bytes, status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("shard_size", [2**40, 2**25])
def test_loading_layer_by_layer_peaks_below_1_15_times_the_bytes_read(shard_size: int, tmp_path: Path) -> None:
    keys = {
        "model_type": "llama",
        "num_hidden_layers": 16,
        "hidden_size": 640,
        "intermediate_size": 2560,
        "num_attention_heads": 10,
        "vocab_size": 16000,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(keys))
    names = iter(tensors_of(load_config(tmp_path)).items())
    shards: list[dict[str, Tensor]] = [{}]
    for name, shape in names:
        if sum(tensor.nbytes for tensor in shards[-1].values()) > shard_size:
            shards.append({})
        shards[-1][name] = torch.ones(shape, dtype=torch.bfloat16)
    for number, shard in enumerate(shards):
        save_file(shard, tmp_path / f"model-{number}.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    num_bytes, peak = map(int, run.stdout.split())
    assert num_bytes > 200 * 2**20
    assert peak < 1.15 * num_bytes
