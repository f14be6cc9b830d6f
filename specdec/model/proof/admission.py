"""Accept a model on the fastest path that gives what the stock model gives, or refuse it with one line."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from specdec.errors import InputError
from specdec.model.attention.dense import Dense
from specdec.model.attention.registry import slower
from specdec.model.cache import cache_argument
from specdec.model.proof import memory
from specdec.model.proof.difference import LARGEST, MEDIAN, shares
from specdec.model.proof.lengths import far_positions
from specdec.model.proof.readings import Reading, Script
from specdec.model.proof.twin import WINDOW, small_twin, windows

if TYPE_CHECKING:
    from specdec.model.target import TargetModel

REMEMBERED_FROM = 0.5  # seconds; shorter proofs are made again at each start


@dataclass(frozen=True)
class ForwardPath:
    """A way to compute a model's forwards.

    Args:
        fused: whether all layers are one call.
        fast: whether our products (CPU) or captured launches (CUDA) are used; otherwise PyTorch does everything.
        kernel: name of the attention kernel.
    """

    fused: bool
    fast: bool
    kernel: str

    def instead_of(self, faster: ForwardPath, kind: str, apart: str) -> str:
        """Return the warning that a model of this `kind` takes this path because the faster one gives other results.

        apart: description of the difference.
        """
        if self == replace(faster, fused=False):
            return f"{kind} runs module by module: its layers are wired differently ({apart})"
        kernel = f"kernel={self.kernel}" if self.kernel != faster.kernel else ""
        products = "PyTorch's own products and launches" if self.fast != faster.fast else ""
        return f"{kind} runs module by module, on {' and '.join(filter(None, (products, kernel)))}: {apart}"


@dataclass(frozen=True)
class Proof:
    """A comparison of our forward with the stock model's.

    Args:
        differences: maps each stage to (largest, median) of the root mean square differences of a token's logits or
            hidden states, as shares of their spread.
        path: the path that was compared.
        note: warning that names the faster path that was given up, and why; "" if none was.
        seconds: wall time of the proof.
        remembered: whether it was made at an earlier start.
    """

    differences: dict[str, tuple[float, float]]
    path: ForwardPath
    note: str = ""
    seconds: float = 0.0
    remembered: bool = False

    @property
    def worst(self) -> tuple[str, float]:
        """The stage with the largest difference, and the difference."""
        return max(((stage, share) for stage, (share, _) in self.differences.items()), key=lambda item: item[1])

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether rounding in this dtype can explain every difference."""
        largest, median = LARGEST[dtype], MEDIAN[dtype]
        return all(top <= largest and middle <= median for top, middle in self.differences.values())


def admitted(target: TargetModel, kernel: str, runtime: str) -> Proof:
    """Set `target` to the first path whose forwards equal the stock model's.

    Args:
        target: on its fastest path.
        kernel: the option as the user gave it; kept unless it is `auto`.
        runtime: likewise.

    Raises:
        InputError: no path does, or the comparison cannot be made.
    """
    begun = time.perf_counter()
    paths = _paths(target, kernel, runtime)
    name = memory.key(target.model, kernel, runtime, *map(repr, paths))
    if (known := _recalled(name, paths)) is not None:
        _take(target, known)
        return replace(known, seconds=time.perf_counter() - begun)
    first: Proof | None = None
    for path in paths:
        target.run_on(path)
        proof = replace(_compared(target), path=path)
        first = first or proof
        if proof.holds(target.dtype):
            note = "" if path == paths[0] else path.instead_of(paths[0], type(target.model).__name__, _apart(first))
            proof = replace(proof, note=note, seconds=time.perf_counter() - begun)
            _take(target, proof)
            if proof.seconds >= REMEMBERED_FROM:
                kept = {"path": paths.index(path), "note": note, "differences": proof.differences}
                memory.remember(name, kept)
            return proof
    raise _refused(target, proof, kernel, runtime)


def _paths(target: TargetModel, kernel: str, runtime: str) -> list[ForwardPath]:
    """Return the path that `target` is on, then slower ones, the slowest last."""
    fastest = target.path
    kernels = [fastest.kernel]
    if kernel == "auto":
        kernels += slower(fastest.kernel)
    paths = [fastest]
    paths += [ForwardPath(False, fastest.fast, name) for name in kernels]
    if runtime == "auto":
        paths += [ForwardPath(False, False, name) for name in kernels]
    return list(dict.fromkeys(paths))


def _take(target: TargetModel, proof: Proof) -> None:
    target.run_on(proof.path)
    if proof.note:
        warnings.warn(proof.note, stacklevel=5)


def _recalled(name: str, paths: list[ForwardPath]) -> Proof | None:
    """Return the proof made at an earlier start; None if there is none, or if its file is damaged."""
    found = memory.recall(name)
    try:
        differences = {stage: (float(top), float(middle)) for stage, (top, middle) in found["differences"].items()}
        return Proof(differences, paths[found["path"]], str(found["note"]), remembered=True)
    except (TypeError, KeyError, ValueError, AttributeError, IndexError):
        return None


def _compared(target: TargetModel) -> Proof:
    """Make every comparison that applies to this model."""
    model = target.model
    try:
        differences = _differences(target, Script(model), "")
        for length, first in far_positions(model.config, target.context_window, Script(model, rows=1).length):
            differences |= _differences(target, Script(model, first_position=first, rows=1), f" past {length} tokens")
        if windows(model.config) or target.dtype in (torch.bfloat16, torch.float16):
            differences |= _of_twin(target)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _cannot(model, error) from error
    return Proof(differences, target.path)


def _of_twin(target: TargetModel) -> dict[str, tuple[float, float]]:
    """Make the comparison for a small random model of this class, whose windows are a few tokens wide, on a text three
    windows long.

    The twin is in fp32 and its differences are compared with fp32's tolerances: they are scaled to those of this dtype.
    """
    twin = small_twin(target.model, target.stock_attention)
    _require_own_cache(twin)
    with warnings.catch_warnings():  # the target has already given the same warnings
        warnings.simplefilter("ignore")
        runtime = "auto" if target.path.fast else "stock"
        other = type(target)(twin, name="twin", kernel=target.kernel.name, runtime=runtime, prove=False)
    if not target.path.fused:
        other.fused = None
    names = ", ".join(windows(target.model.config)) or "no window"
    found = _differences(other, Script(twin, repeat=3 * WINDOW // 4), f" of a small twin ({names})")
    scale = LARGEST[target.dtype] / LARGEST[torch.float32], MEDIAN[target.dtype] / MEDIAN[torch.float32]
    return {stage: (top * scale[0], middle * scale[1]) for stage, (top, middle) in found.items()}


@torch.inference_mode()
def _require_own_cache(twin: PreTrainedModel) -> None:
    """Refuse a class for which transformers itself gives other results with its KV cache than without, behind a window.
    Its text depends on how many tokens a forward reads.

    Raises:
        InputError: gives the difference of the results.
    """
    script = Script(twin)
    ids = torch.tensor([[script.token(0, i) for i in range(3 * WINDOW)]], device=twin.device)
    whole = twin(input_ids=ids, use_cache=False).logits[0, 2 * WINDOW :]
    name, steps = cache_argument(twin), []
    cache = twin(input_ids=ids[:, : 2 * WINDOW], use_cache=True)[name]
    for step in ids[:, 2 * WINDOW :].split(1, dim=1):
        steps.append(twin(input_ids=step, use_cache=True, **{name: cache}).logits[0, -1])
    apart = float(shares(torch.stack(steps), whole).max())
    if not apart <= LARGEST[torch.float32]:
        raise InputError(
            "target",
            expected="a model that transformers runs alike with a KV cache and without",
            got=f"{type(twin).__name__}, whose results part behind its window ({apart:.0e} of their spread)",
            fix="choose another model; docs/models.md lists the families that work",
        )


def _differences(target: TargetModel, script: Script, where: str) -> dict[str, tuple[float, float]]:
    readings = script.ours(target)
    with target.stock() as model:
        answers = script.theirs(model, [reading.text for reading in readings])
    stages: dict[str, list[Reading]] = {}
    for reading in readings:
        stages.setdefault(reading.stage, []).append(reading)
    differences = {}
    for stage, of_stage in stages.items():
        logits, hidden = zip(*(answers[reading.text] for reading in of_stage), strict=True)
        if not torch.stack(hidden).isfinite().all():
            raise _not_finite(target.model)
        apart = torch.maximum(
            shares(torch.stack([reading.logits for reading in of_stage]), torch.stack(logits)),
            shares(torch.stack([reading.hidden for reading in of_stage]), torch.stack(hidden)),
        )
        differences[stage + where] = (float(apart.max()), float(apart.median()))
    return differences


def _apart(proof: Proof) -> str:
    stage, share = proof.worst
    return f"{stage}: results {share:.0e} of their spread apart"


def _refused(target: TargetModel, proof: Proof, kernel: str, runtime: str) -> InputError:
    kind, fixes = type(target.model).__name__, []
    if runtime == "fast":
        fixes.append("use target.runtime=stock")
    if kernel not in ("auto", Dense.name):
        fixes.append("use target.kernel=dense")
    return InputError(
        "target",
        expected="forwards over trees that give what the stock model gives",
        got=f"{kind} in {str(target.dtype).removeprefix('torch.')} on kernel={target.kernel.name} ({_apart(proof)})",
        fix=" or ".join(fixes or ["choose another model; docs/models.md lists the families that work"]),
    )


def _cannot(model: PreTrainedModel, error: Exception) -> InputError:
    return InputError(
        "target",
        expected="forwards over trees that can be compared with the stock model's",
        got=f"{type(model).__name__} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})",
        fix="choose another model; docs/models.md lists the families that work",
    )


def _not_finite(model: PreTrainedModel) -> InputError:
    return InputError(
        "target",
        expected="weights that give finite results",
        got=f"{type(model).__name__}, whose hidden states hold NaN or infinity in transformers itself",
        fix="fetch the checkpoint again, or use another dtype (target.dtype=bfloat16 has a larger range than float16)",
    )
