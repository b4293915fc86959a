"""Hub ids against a server here that speaks the hub's API: what is fetched, and what is said when it cannot be."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from hopformer.errors import ConfigError, HopformerError, HubError, ModelError
from hopformer.llama.config import load_config
from hopformer.llama.hub import find_config, resolve_model
from hopformer.llama.weights import INDEX_NAME, TensorFiles, embed_tensor, head_tensors, layer_tensors

REPO = "org/tiny"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
WHOLE_FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX_NAME,
    *(f"model-{number}.safetensors" for number in range(5)),
}


@dataclass
class FakeHub:
    """Repositories by id and revision, each a folder; and what was asked of them."""

    folders: dict[tuple[str, str], Path] = field(default_factory=dict)
    error: tuple[int, str] | None = None  # a status and an X-Error-Code with which everything is answered
    fetched: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, folder: Path) -> str:
        return hashlib.sha1(str(folder).encode()).hexdigest()

    def find(self, repo: str, revision: str) -> tuple[Path | None, str]:
        """The folder, or None and an X-Error-Code."""
        for (name, branch), folder in self.folders.items():
            if name == repo and revision in (branch, self.commit(folder)):
                return folder, ""
        known = any(name == repo for name, _ in self.folders)
        return None, "RevisionNotFound" if known else "RepoNotFound"


class HubHandler(BaseHTTPRequestHandler):
    """GET /api/models/REPO/revision/REV?blobs=true; HEAD and GET, with Range, of /REPO/resolve/REV/FILE."""

    hub: FakeHub

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        path = self.path.partition("?")[0]
        if self.hub.error is not None:
            return self.refuse(*self.hub.error)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            return self.send_listing(match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.send_file(match[1], match[2], match[3], send_body)
        return self.refuse(404, "RepoNotFound")

    def send_listing(self, repo: str, revision: str) -> None:
        folder, code = self.hub.find(repo, revision)
        if folder is None:
            return self.refuse(404, code)
        siblings = [{"rfilename": path.name, "size": path.stat().st_size} for path in sorted(folder.iterdir())]
        body = json.dumps({"id": repo, "sha": self.hub.commit(folder), "siblings": siblings}).encode()
        return self.reply(200, body, {"Content-Type": "application/json"}, send_body=True)

    def send_file(self, repo: str, revision: str, name: str, send_body: bool) -> None:
        folder, code = self.hub.find(repo, revision)
        if folder is None:
            return self.refuse(404, code)
        if not (folder / name).is_file():
            return self.refuse(404, "EntryNotFound")
        body = (folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": self.hub.commit(folder)}
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        if send_body:
            self.hub.fetched.append(name)
        return self.reply(status, body, headers, send_body)

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": code}, send_body=True)

    def reply(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving(hub: FakeHub) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model of four layers in five shards, one for each layer and one for the rest, and files that nobody needs."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    config = load_config(folder)
    groups = [layer_tensors(config, index).values() for index in range(4)]
    weight_map = {}
    for number, group in enumerate([*groups, [embed_tensor(config), *head_tensors(config).values()]]):
        file = f"model-{number}.safetensors"
        weight_map |= {name: file for name, _ in group}
        save_file({name: torch.randn(shape) for name, shape in group}, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    for name in WHOLE_FILES - {"config.json", INDEX_NAME, *weight_map.values()}:
        (folder / name).write_text(json.dumps({"name": name}))  # no two alike: the cache keeps equal files once
    (folder / "pytorch_model.bin").write_bytes(bytes(100))
    (folder / "README.md").write_text("A model.")
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running hub with the repository on its main branch, and a cache of its own."""
    hub = FakeHub({(REPO, "main"): repository})
    with serving(hub):
        use_endpoint(monkeypatch, hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def refusal(ref: str, error: type[HopformerError] = HubError, layers: tuple[int, int] | None = None) -> str:
    with pytest.raises(error) as caught:
        resolve_model(ref, layers=layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_hub_id_becomes_a_folder_with_all_that_is_read_and_nothing_else(hub: FakeHub, repository: Path) -> None:
    folder = resolve_model(REPO)
    assert names(folder) == WHOLE_FILES
    assert sorted(hub.fetched) == sorted(WHOLE_FILES)
    for name in WHOLE_FILES:
        assert (folder / name).read_bytes() == (repository / name).read_bytes()
    assert len(TensorFiles.open(folder).names) == 4 * 9 + 3


def test_a_span_fetches_only_the_shards_of_its_layers(hub: FakeHub) -> None:
    folder = resolve_model(REPO, layers=(1, 3))
    shards = {name for name in hub.fetched if name.endswith(".safetensors")}
    assert shards == {"model-1.safetensors", "model-2.safetensors"}
    config, files = load_config(folder), TensorFiles.open(folder)
    for name, shape in layer_tensors(config, 2).values():
        assert files.read(name, shape, torch.float32).shape == shape
    resolve_model(REPO, layers=(2, 4))
    again = [name for name in hub.fetched if name.endswith(".safetensors")]
    assert sorted(again) == [*sorted(shards), "model-3.safetensors"]  # each once


def test_a_caller_fetches_only_the_embedding_and_the_head(hub: FakeHub) -> None:
    assert find_config(REPO) is None and hub.fetched == []
    folder = resolve_model(REPO, layers=(0, 0), ends=True)
    assert find_config(REPO) == folder
    config, files = load_config(folder), TensorFiles.open(folder)
    ends = [embed_tensor(config), *head_tensors(config, files.names).values()]
    assert all(files.read(*tensor, torch.float32).shape == tensor[1] for tensor in ends)
    layers = [name for index in range(config.num_layers) for name, _ in layer_tensors(config, index).values()]
    assert sum(map(files.has, layers)) < len(layers), "some layers stay where they are"
    num_fetched = len(hub.fetched)
    resolve_model(REPO, layers=(1, 2), ends=True)
    assert [name for name in hub.fetched[num_fetched:] if name.endswith(".safetensors")] == ["model-1.safetensors"]


def test_a_config_is_found_without_fetching(tmp_path: Path) -> None:
    demo = find_config("demo")
    assert demo is not None and load_config(demo).num_layers == 8
    assert find_config(str(demo)) == demo
    assert find_config(str(tmp_path)) is None and find_config("no such folder") is None


def test_what_is_in_the_cache_is_not_fetched_again(hub: FakeHub) -> None:
    first = resolve_model(REPO)
    num_fetched = len(hub.fetched)
    assert resolve_model(REPO) == first
    assert len(hub.fetched) == num_fetched


def test_a_revision_is_fetched_by_its_name(hub: FakeHub, repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    repository.rename(other)
    repository.mkdir()
    hub.folders = {(REPO, "main"): repository, (REPO, "v2"): other}
    assert names(resolve_model(f"{REPO}@v2")) == WHOLE_FILES
    assert "has no config.json" in refusal(REPO)
    assert "has no revision v3" in refusal(f"{REPO}@v3")


def test_one_file_of_weights_is_taken_before_an_index(hub: FakeHub, repository: Path) -> None:
    save_file({"a": torch.zeros(1)}, repository / "model.safetensors")
    folder = resolve_model(REPO, layers=(0, 1))
    assert {name for name in names(folder) if name.endswith(".safetensors")} == {"model.safetensors"}


def test_weights_without_an_index_are_all_fetched(hub: FakeHub, repository: Path) -> None:
    (repository / INDEX_NAME).unlink()
    assert names(resolve_model(REPO, layers=(0, 1))) == WHOLE_FILES - {INDEX_NAME}


def test_progress_counts_the_bytes_of_each_file_up_to_its_size(hub: FakeHub, repository: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    resolve_model(REPO, progress=lambda done, total, name: calls.append((done, total, name)))
    assert {name for *_, name in calls} == WHOLE_FILES
    for name in WHOLE_FILES:
        counts = [(done, total) for done, total, of in calls if of == name]
        size = (repository / name).stat().st_size
        assert counts == sorted(counts) and counts[-1] == (size, size)
    calls.clear()
    resolve_model(REPO, progress=lambda done, total, name: calls.append((done, total, name)))
    assert calls == []


def test_a_model_that_cannot_run_is_refused_before_its_weights_are_fetched(hub: FakeHub, repository: Path) -> None:
    (repository / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "gelu"}))
    assert "hidden_act" in refusal(REPO, ConfigError)
    assert not any(name.endswith(".safetensors") for name in hub.fetched)


def test_a_repository_without_safetensors_says_so(hub: FakeHub, repository: Path) -> None:
    for path in repository.glob("*.safetensors*"):
        path.unlink()
    assert f"{REPO} has no *.safetensors file" in refusal(REPO)


def test_a_shard_that_the_index_names_and_the_hub_lacks_is_named(hub: FakeHub, repository: Path) -> None:
    (repository / "model-3.safetensors").unlink()
    assert "has no model-3.safetensors" in refusal(REPO)
    assert (resolve_model(REPO, layers=(0, 3)) / "model-2.safetensors").exists()


@pytest.mark.parametrize("layers", [(0, 5), (-1, 2), (2, 2), (3, 1)])
def test_layers_that_the_model_lacks_are_refused(layers: tuple[int, int], hub: FakeHub) -> None:
    assert f"has no layers {layers[0]}:{layers[1]}; it has 0:4" in refusal(REPO, layers=layers)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ((404, "RepoNotFound"), "is not on the hub, or is private"),
        ((401, "RepoNotFound"), "is not on the hub, or is private"),
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((401, "GatedRepo"), "is gated: accept its terms"),
        ((403, ""), "refuses the list of its files with HTTP 403"),
        ((429, ""), "HTTP 429"),
        ((503, ""), "config.json is not in the cache, and the hub is out of reach: it answers with HTTP 503"),
    ],
)
def test_what_the_hub_refuses_is_one_line(error: tuple[int, str], said: str, hub: FakeHub) -> None:
    hub.error = error
    message = refusal(REPO)
    assert message.startswith(REPO) and said in message


def test_a_hub_that_does_not_answer_is_one_line_unless_the_cache_has_the_model(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve_model(REPO)
    use_endpoint(monkeypatch, "http://127.0.0.1:9")  # the discard port, where nothing listens
    assert resolve_model(REPO) == folder
    message = refusal("org/other")
    assert message.startswith("org/other: config.json is not in the cache, and the hub is out of reach: ")
    assert "refused" in message


def test_offline_the_cache_serves_what_it_has_and_names_what_it_lacks(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve_model(REPO, layers=(0, 2))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve_model(REPO, layers=(0, 2)) == folder
    assert resolve_model(REPO, layers=(1, 2)) == folder
    message = refusal(REPO)
    assert re.search(r"model-\d.safetensors is not in the cache, and the hub is out of reach: HF_HUB_OFFLINE", message)
    assert "config.json is not in the cache" in refusal("org/other")


def test_offline_a_folder_without_weights_says_that_they_are_not_cached(
    hub: FakeHub, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / INDEX_NAME).unlink()
    folder = resolve_model(REPO)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "its weights are not in the cache" in refusal(REPO)


@pytest.mark.slow
def test_the_endpoint_and_the_cache_come_from_the_environment(hub: FakeHub, tmp_path: Path) -> None:
    program = f"from hopformer.llama.hub import resolve_model; print(resolve_model({REPO!r}, layers=(0, 1)))"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    folder = Path(run.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home") and (folder / "model-0.safetensors").exists()
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    num_fetched = len(hub.fetched)
    run = subprocess.run(
        [sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert Path(run.stdout.strip()) == folder and len(hub.fetched) == num_fetched


def test_a_folder_is_itself_and_demo_is_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "demo").mkdir()
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("org/name") == Path("org/name")
    assert resolve_model("./demo") == Path("demo")
    demo = resolve_model("demo")
    assert demo.parent.name == "llama" and (demo / "__init__.py").exists()


@pytest.mark.parametrize(
    "ref", ["/no/such/folder", "./models/x", "../x", "~/models", "models/a/b", "tinyllama", "", "a b/c", "org/", "x@y"]
)
def test_what_is_neither_a_folder_nor_a_hub_id_says_so(
    ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(ref, ModelError).startswith(f"folder {ref} is not found; a model is a folder, org/name[@revision]")


def test_a_file_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    Path("org/file").touch()
    assert "folder org/file is not found" in refusal("org/file", ModelError)


@pytest.mark.parametrize("ref", ["org/na--me", "org/name.", "org/" + "x" * 200])
def test_an_id_that_the_hub_would_never_have_is_refused_without_asking(ref: str, hub: FakeHub) -> None:
    assert "is not a hub id" in refusal(ref)
    assert hub.fetched == []
