"""Find and read weights in a folder, a file or a hub repository.

Safetensors are preferred to pickles. A pickle may hold only tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.weights import PickledCodeError, read_tensors, tensor_names

NAMES = (  # the first that exists is read
    "medusa_lm_head.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "rank0.safetensors",
    "medusa_lm_head.pt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Source:
    """Read tensors by key. Files are fetched and read only when needed, so a full model yields its heads cheaply.

    Args:
        name: a folder, a file or a hub id.
        what: name used in error messages.

    Raises:
        InputError: no weights there, a corrupt or truncated file, or a pickle that holds more than tensors.
    """

    def __init__(self, name: str, what: str) -> None:
        self._name, self._what = name, what
        path = Path(name).expanduser()
        self._folder = path if path.is_dir() else path.parent if path.is_file() else None
        self._on_hub = self._listed() if self._folder is None else set()
        names = (path.name,) if path.is_file() else NAMES
        found = next((file for file in map(self.file, names) if file is not None), None)
        if found is None:
            raise self.error(f"one of {', '.join(NAMES)}", "none of them", "check the spelling")
        if self.file("rank1.safetensors") is not None:
            raise self.error("one file for the whole model", "tensor-parallel ranks", "convert with tp_size 1")
        if found.suffix == ".json":
            self._shards: dict[str, str] = self._index(found)
        else:
            self._shards = dict.fromkeys(self._keys_of(found), found.name)

    def file(self, name: str) -> Path | None:
        """Return the path of a file beside the weights, or None if there is no such file."""
        if self._folder is not None:
            return self._folder / name if (self._folder / name).is_file() else None
        return Path(hf_hub_download(self._name, name)) if name in self._on_hub else None

    def _listed(self) -> set[str]:
        """Return the files of a hub repository. If the hub cannot be reached, use the cached copy as a folder."""
        try:
            return set(list_repo_files(self._name))
        except Exception as error:  # the hub's client raises its own errors and those of its HTTP library
            try:
                self._folder = Path(snapshot_download(self._name, local_files_only=True))
            except (HFValidationError, LocalEntryNotFoundError):
                why = str(error).strip().splitlines()[0]
                expected, got = "a folder, a file or a hub id", f"{self._name!r} ({why})"
                raise InputError(self._what, expected=expected, got=got, fix="check the spelling") from error
            return set()

    def keys(self) -> list[str]:
        return list(self._shards)

    def config(self) -> dict[str, Any]:
        """Return the content of `config.json`, or {} if there is none."""
        file = self.file("config.json")
        return {} if file is None else self._json(file)

    def tensors(self, keys: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in dict.fromkeys(self._shards[key] for key in keys):
            file = self.file(name)
            if file is None:
                raise self.error(f"the shard {name}", "no such file", "fetch it again")
            here = [key for key in keys if self._shards[key] == name]
            with self._whole(file):
                found |= read_tensors(file, here)
        return found

    def error(self, expected: str, got: object, fix: str = "check the file") -> InputError:
        return InputError(self._what, expected=f"in {self._name!r} {expected}", got=got, fix=fix)

    def _keys_of(self, file: Path) -> list[str]:
        with self._whole(file):
            return tensor_names(file)

    def _index(self, file: Path) -> dict[str, str]:
        """Return the file name of each tensor, from an index file."""
        shards = self._json(file).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(n, str) and Path(n).name == n for n in shards.values()):
            raise self.error(f"{file.name} with the names of files beside it in `weight_map`", "something else")
        return shards

    def _json(self, file: Path) -> dict[str, Any]:
        with self._whole(file):
            found = read_json(file)
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
            return found

    @contextmanager
    def _whole(self, file: Path) -> Iterator[None]:
        """Turn errors of reading a file into an `InputError` that names the file and the reason."""
        try:
            yield
        except PickledCodeError as error:
            expected = f"{file.name} with tensors only"
            raise self.error(expected, str(error), "do not trust it; ask its author for safetensors") from error
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            got = f"a corrupt or truncated one ({why})"
            raise self.error(f"a whole {file.name}", got, "fetch it again") from error
