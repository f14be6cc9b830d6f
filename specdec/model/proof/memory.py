"""Keep proofs that took long, for the same weights, code and machine."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from specdec.errors import InputError
from specdec.files.durable import write_json
from specdec.files.home import cache_folder

SAMPLED = 16  # values of each tensor that go into the key


def key(model: PreTrainedModel, *options: str) -> str:
    """Return a name that depends on everything that a proof depends on. Samples the weights: 10 ms for 135 million of
    them."""
    digest = hashlib.sha256()
    for part in (*options, _code(), _machine(model.device), _source(type(model)), model.config.to_json_string()):
        digest.update(f"{part}\0".encode())
    names, samples = [], []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        names.append(f"{name}{tuple(tensor.shape)}{tensor.dtype}")
        values = tensor.detach().flatten()
        samples.append(values[:: max(1, len(values) // SAMPLED)][: SAMPLED + 1].double())
    digest.update("\0".join(names).encode())
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def recall(name: str) -> Any:
    """Return the proof kept under this key, or None. A file that cannot be read counts as none."""
    try:
        return json.loads(_file(name).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def remember(name: str, proof: dict[str, Any]) -> None:
    """Keep a proof. If nothing can be written, the next start makes it again."""
    file = _file(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, proof)
    except (OSError, InputError):
        return


def _file(name: str) -> Path:
    return cache_folder() / "proofs" / f"{name}.json"


@cache
def _code() -> str:
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    here = Path(__file__).resolve().parents[2]
    for file in sorted(here.rglob("*")):
        if file.suffix in (".py", ".cpp", ".hpp"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _source(kind: type) -> str:
    """Return a hash of the modeling code, which also changes with the version of transformers."""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return kind.__qualname__


def _machine(device: torch.device) -> str:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {gpu}"
