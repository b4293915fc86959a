"""From what a user calls a model to a folder: a folder itself, the bundled demo, or an id of the Hugging Face hub.

huggingface_hub does the talking and keeps its usual cache; HF_ENDPOINT, HF_HUB_OFFLINE and tokens are its own business.
Of a repository only what hopformer reads is fetched: configuration first, so that a model which cannot run is refused
before its weights are on their way, then the tokenizer and the files that the asked layers lie in.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP client that the installed huggingface_hub uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from ..errors import HubError, ModelError
from .config import load_config
from .weights import INDEX_NAME, SINGLE_NAME, read_index, span_files

DEMO = "demo"
DEFAULT_REVISION = "main"
LISTING_TIMEOUT_S = 15.0  # a hub that cannot list a repository by then will not send gigabytes
CONFIG_NAME = "config.json"
TEXT_NAMES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)

Progress = Callable[[int, int, str], None]  # bytes done and bytes in all of one file, its name
Count = Callable[[int], object]  # bytes done

_HUB_ID = re.compile(r"([^/@\s]+/[^/@\s]+)(?:@(\S+))?")


def resolve_model(
    ref: str, *, layers: tuple[int, int] | None = None, ends: bool = False, progress: Progress | None = None
) -> Path:
    """The folder of the model that ``ref`` names: a folder, "demo", or ``org/name[@revision]``, fetched where needed.

    Args:
        layers: of a hub id's weights, fetch only the files in which these layers lie, start to end; None for all files,
            (0, 0) for none.
        ends: with ``layers``, which may then be none anywhere, also those of the embedding and the head.
        progress: told bytes done, bytes in all and the name of a file, while it is fetched.

    Raises:
        ModelError: there is no such folder, or what the hub has is not a model that hopformer runs.
        HubError: the hub does not have it, does not give it or is out of reach.
    """
    if ref == DEMO:
        return Path(__file__).parent / DEMO
    if ref and Path(ref).is_dir():
        return Path(ref)
    hub_id = _HUB_ID.fullmatch(ref)
    if hub_id is None or ref[0] in ".~\\" or Path(ref).exists():
        raise ModelError(f"folder {ref} is not found; a model is a folder, org/name[@revision] on the hub, or demo")
    return _Repository(hub_id[1], hub_id[2] or DEFAULT_REVISION).fetch(layers, ends, progress)


def find_config(ref: str) -> Path | None:
    """The folder that has the config.json of the model that ``ref`` names; None where it is not on this machine."""
    hub_id = _HUB_ID.fullmatch(ref)
    if ref == DEMO or Path(ref).is_dir() or hub_id is None:
        folder = Path(__file__).parent / DEMO if ref == DEMO else Path(ref)
        return folder if (folder / CONFIG_NAME).is_file() else None
    cached = try_to_load_from_cache(hub_id[1], CONFIG_NAME, revision=hub_id[2] or DEFAULT_REVISION)
    return Path(cached).parent if isinstance(cached, str) else None


class _Repository:
    """One revision of a repository on the hub, or of its copy in the cache when the hub is out of reach."""

    def __init__(self, repo_id: str, revision: str) -> None:
        self._repo_id = repo_id
        self._revision = revision
        self._ref = repo_id if revision == DEFAULT_REVISION else f"{repo_id}@{revision}"
        self._offline: str | None = None  # why the hub is out of reach

    def fetch(self, layers: tuple[int, int] | None, ends: bool, progress: Progress | None) -> Path:
        """The folder in the cache, with all in it that ``layers`` need."""
        sizes = self._list_files()

        def download(name: str, revision: str) -> Path:
            size = sizes.get(name, 0)
            return self._download(name, revision, lambda done: progress and progress(done, max(size, done), name))

        folder = download(CONFIG_NAME, self._revision).parent  # by its revision, which notes it for offline use
        if self._offline:
            sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        commit = folder.name
        if INDEX_NAME in sizes:
            download(INDEX_NAME, commit)
        for name in (*(name for name in TEXT_NAMES if name in sizes), *self._weight_files(folder, sizes, layers, ends)):
            download(name, commit)
        return folder

    def _list_files(self) -> dict[str, int]:
        """The files with their sizes in bytes; none, and ``_offline`` is set, when the hub is out of reach."""
        try:
            with self._translated_errors("the list of its files"):
                info = HfApi().model_info(
                    self._repo_id, revision=self._revision, files_metadata=True, timeout=LISTING_TIMEOUT_S
                )
        except _OutOfReach as error:
            self._offline = error.reason
            return {}
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def _weight_files(
        self, folder: Path, files: Mapping[str, int], layers: tuple[int, int] | None, ends: bool
    ) -> list[str]:
        """Which files hold the weights, in TensorFiles.open's order of preference."""
        config = load_config(folder)
        if SINGLE_NAME in files:
            return [SINGLE_NAME]
        if INDEX_NAME in files:
            index = read_index(folder / INDEX_NAME)
            if layers is None:
                return sorted(set(index.values()))
            start, end = layers
            if not (0 <= start < end <= config.num_layers or (ends and start == end) or (start, end) == (0, 0)):
                raise HubError(f"{self._ref} has no layers {start}:{end}; it has 0:{config.num_layers}")
            return list(span_files(index, config, start, end, embed=ends, head=ends))
        names = sorted(name for name in files if name.endswith(".safetensors") and "/" not in name)
        if names:
            return names
        if self._offline:
            raise HubError(
                f"{self._ref}: its weights are not in the cache, and the hub is out of reach: {self._offline}"
            )
        raise HubError(f"{self._ref} has no *.safetensors file; other formats of weights are not read")

    def _download(self, name: str, revision: str, count: Count) -> Path:
        """The file in the cache, fetched if it is not there yet."""
        with self._translated_errors(name):
            path = hf_hub_download(
                self._repo_id,
                name,
                revision=revision,
                tqdm_class=_silent_bar(count),
                local_files_only=self._offline is not None,
            )
        return Path(path)

    @contextmanager
    def _translated_errors(self, wanted: str) -> Iterator[None]:
        """Whatever huggingface_hub raises while it fetches ``wanted``, as one line of ours."""
        ref = self._ref
        try:
            yield
        except GatedRepoError:
            raise HubError(f"{ref} is gated: accept its terms on its page, then log in with `hf auth login`") from None
        except RepositoryNotFoundError:
            raise HubError(
                f"{ref} is not on the hub, or is private: check the id, or log in with `hf auth login`"
            ) from None
        except RevisionNotFoundError:
            raise HubError(f"{self._repo_id} has no revision {self._revision}; check the part after @") from None
        except LocalEntryNotFoundError:
            reason = self._offline or "it does not answer"
            raise HubError(f"{ref}: {wanted} is not in the cache, and the hub is out of reach: {reason}") from None
        except EntryNotFoundError:
            raise HubError(f"{ref} has no {wanted}; hopformer needs a repository in Hugging Face layout") from None
        except HFValidationError as error:
            raise HubError(f"{ref} is not a hub id: {_first_line(error)}") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status >= 500:
                raise _OutOfReach(f"{ref}: {wanted}", f"it answers with HTTP {status}; try again later") from None
            raise HubError(f"{ref}: the hub refuses {wanted} with HTTP {status}") from None
        except OfflineModeIsEnabled:
            raise _OutOfReach(f"{ref}: {wanted}", "HF_HUB_OFFLINE is set") from None
        except (HTTPError, OSError) as error:
            raise _OutOfReach(f"{ref}: {wanted}", _first_line(error)) from None


class _OutOfReach(HubError):
    """The hub does not answer, or may not be asked; the cache may help."""

    def __init__(self, wanted: str, reason: str) -> None:
        super().__init__(f"{wanted} cannot be fetched: {reason}")
        self.reason = reason


def _silent_bar(count: Count) -> type[tqdm]:
    """A progress bar for huggingface_hub that shows nothing and tells ``count`` how many bytes of a file are there."""

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))
            self._num_bytes = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self._num_bytes += int(n or 0)
            count(self._num_bytes)

    return SilentBar


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
