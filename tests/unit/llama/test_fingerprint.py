"""Fingerprints of a model: what leaves them as they are, what changes them, and what spans compare."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hopformer.errors import WeightsError
from hopformer.llama.fingerprint import BLOCK_BYTES, NUM_BLOCKS, fingerprint
from hopformer.llama.fingerprint_bits import CONFIG_BYTES, FINGERPRINT_BYTES, LAYER_BITS, layer_bits, same_model

NUM_LAYERS = 4
CONFIG = transformers.LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=NUM_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("original")
    transformers.LlamaForCausalLM(CONFIG).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def change_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(folder: Path) -> None:
    """A file for each layer, and one for the rest, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"part-{part}.safetensors", {})[name] = tensor
    for file, part_tensors in files.items():
        save_file(part_tensors, folder / file)
    index = {name: file for file, part_tensors in files.items() for name in part_tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_a_fingerprint_has_32_bytes_and_is_the_same_every_time(original: Path, folder: Path) -> None:
    assert len(fingerprint(original)) == FINGERPRINT_BYTES
    assert fingerprint(original) == fingerprint(folder)


def test_one_file_or_many_make_no_difference(original: Path, folder: Path) -> None:
    shard(folder)
    assert fingerprint(folder) == fingerprint(original)


def test_names_without_their_prefix_make_no_difference(original: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert fingerprint(folder) == fingerprint(original)


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_changed_weights_change_their_layer_s_bits_and_no_others(original: Path, folder: Path, layer: int) -> None:
    change_tensor(folder, f"model.layers.{layer}.mlp.down_proj.weight")
    one, other = fingerprint(original), fingerprint(folder)
    assert one != other
    for index in range(NUM_LAYERS):
        assert same_model(one, other, NUM_LAYERS, index, index + 1) == (index != layer)
    assert not same_model(one, other, NUM_LAYERS, 0, NUM_LAYERS)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"rms_norm_eps": 1e-5}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, False),
        ({"eos_token_id": 7, "bos_token_id": 8}, True),
        ({"max_position_embeddings": 128}, False),
        ({"transformers_version": "0"}, True),
    ],
)
def test_a_config_counts_by_its_maths(original: Path, folder: Path, change: dict[str, object], same: bool) -> None:
    change_config(folder, **change)
    assert (fingerprint(folder)[:CONFIG_BYTES] == fingerprint(original)[:CONFIG_BYTES]) == same
    assert same_model(fingerprint(folder), fingerprint(original), NUM_LAYERS, 0, NUM_LAYERS) == same


def test_another_dtype_is_another_model(original: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert not same_model(fingerprint(original), fingerprint(folder), NUM_LAYERS, 0, 1)


def test_embedding_and_head_do_not_count(original: Path, folder: Path) -> None:
    change_tensor(folder, "model.embed_tokens.weight")
    change_tensor(folder, "lm_head.weight")
    assert fingerprint(folder) == fingerprint(original)


def test_a_node_with_some_layers_compares_those(original: Path, folder: Path, tmp_path: Path) -> None:
    shard(folder)
    (folder / "part-0.safetensors").unlink()
    (folder / "part-rest.safetensors").unlink()
    whole, part = fingerprint(original), fingerprint(folder, 1, 3)
    assert part == fingerprint(original, 1, 3) != whole
    assert same_model(whole, part, NUM_LAYERS, 0, NUM_LAYERS), "what only one has is not compared"
    other = Path(shutil.copytree(original, tmp_path / "other"))
    change_tensor(other, "model.layers.2.mlp.up_proj.weight")
    assert not same_model(fingerprint(other), part, NUM_LAYERS, 0, NUM_LAYERS)
    assert same_model(fingerprint(other), part, NUM_LAYERS, 0, 2)
    assert fingerprint(folder) == fingerprint(original, 1, 4), "layers that are not there have bits of 0"


def test_a_node_without_layers_compares_the_config_alone(original: Path, folder: Path) -> None:
    shard(folder)
    for layer in range(NUM_LAYERS):
        (folder / f"part-{layer}.safetensors").unlink()
    thin = fingerprint(folder)
    assert same_model(thin, fingerprint(original), NUM_LAYERS, 0, NUM_LAYERS)
    change_config(folder, rms_norm_eps=1e-5)
    assert not same_model(fingerprint(folder), fingerprint(original), NUM_LAYERS, 0, NUM_LAYERS)


def test_a_large_tensor_is_sampled_at_both_ends_and_between(original: Path, folder: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    change_config(folder, intermediate_size=4096, num_hidden_layers=1)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = torch.zeros(4096, 32)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(4096, 32)
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(32, 4096)
    assert tensors[name].nbytes > 2 * NUM_BLOCKS * BLOCK_BYTES
    seen = set()
    for place in (None, 0, -1, slice(1000, 3000)):
        changed = tensors[name].clone().flatten()
        if place is not None:
            changed[place] = 1.0
        save_file(tensors | {name: changed.view(4096, 32)}, folder / "model.safetensors")
        seen.add(fingerprint(folder))
    save_file(tensors | {name: torch.ones(4096, 32)}, folder / "model.safetensors")
    seen.add(fingerprint(folder))
    assert len(seen) >= 4, "both ends, and nearly everything, are noticed"


def test_weights_that_config_does_not_describe_are_refused(folder: Path) -> None:
    change_config(folder, intermediate_size=47)
    with pytest.raises(WeightsError, match=r"gate_proj.weight has shape \[48, 32\]"):
        fingerprint(folder)


@pytest.mark.parametrize("num_layers", [1, 2, 22, 32, 80, 96, 126, 192, 300])
def test_every_layer_that_is_there_has_bits_of_its_own(num_layers: int) -> None:
    digests = [bytes([value]) * 32 for value in (0, 1, 2, 255)]
    taken = 0
    for index in range(num_layers):
        found = [layer_bits(digest, num_layers, index) for digest in digests]
        assert all(found) or num_layers > LAYER_BITS
        assert len(set(found)) > 1 or num_layers > 96
        assert not any(bits & taken for bits in found)
        for bits in found:
            taken |= bits
    assert taken < 1 << LAYER_BITS


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33)])
def test_bytes_of_another_length_are_no_fingerprint(original: Path, wrong: bytes) -> None:
    assert not same_model(fingerprint(original), wrong, NUM_LAYERS, 0, NUM_LAYERS)
