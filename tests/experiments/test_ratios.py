"""`python -m experiments.ratios`: its tables, what it writes, and the check that can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import ratios as suite
from specdec.measure import rivals as reference

TINY = [
    "target=tiny", "target.device=cpu", "reference.draft=tiny", "prompts.limit=2", "generation.max_new_tokens=6",
    "batch.sizes=[1,2]", "batch.max_new_tokens=4", "batch.rounds=1", "forward.rounds=2", "forward.buffer_mib=1",
    "forward.matrix=16",
]  # fmt: skip
METHODS = ("generate", "generate with prompt lookup", "assisted generation", "draft model")


@pytest.fixture(autouse=True)
def _without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "find_spec", lambda _: None)


def expectations(path: Path, **bounds: float) -> str:
    path.write_text(json.dumps({"ratios": {"ngram / generate": bounds}}), "utf-8")
    return f"check={path}"


def test_every_ratio_is_measured_and_what_is_missing_is_named(call: Callable[..., tuple], tmp_path: Path) -> None:
    written = tmp_path / "ratios.json"
    status, summary, out = call(suite.main, *TINY, f"write={written}")
    assert status == 0
    ratios = {ratio["name"]: ratio for ratio in summary["ratios"]}
    assert set(ratios) == {
        "autoregressive / generate", "ngram / autoregressive", "ngram / generate",
        "ngram / generate with prompt lookup", "draft model / assisted generation", "verify of 8 / decode of 1",
        "verify of 16 / decode of 1", "token at 2048 / at 256", "batch 2 / batch 1",
        "batch 2 / batch 1, after the prompts", "outside the forwards / step",
    }  # fmt: skip
    assert ratios["ngram / generate"]["value"] == pytest.approx(summary["reference"]["speedup"])
    assert ratios["outside the forwards / step"]["less"]
    assert all(f"{name} " in out for name in METHODS)
    assert "llama.cpp: not installed (pip install -e '.[llama]')" in out
    assert [point["tokens"] for point in summary["forwards"]] == [1, 1, 8, 16]
    assert [at["batch_size"] for at in summary["batch_curve"]] == [1, 2]
    kept = json.loads(written.read_text("utf-8"))
    assert kept["machine"]["cores"] > 0
    assert kept["command"][:3] == ["python", "-m", "experiments.ratios"]
    assert kept["ratios"]["ngram / generate"]["at_least"] < kept["ratios"]["ngram / generate"]["expected"]
    assert set(kept["ratios"]) == {name for name, ratio in ratios.items() if ratio["goal"] is not None}


def test_a_ratio_below_its_bound_fails_the_run_with_a_line(call: Callable[..., tuple], tmp_path: Path) -> None:
    without_draft = [option for option in TINY if not option.startswith("reference.draft")]
    quick = [*without_draft, "reference=hf", "compare=['ngram / generate']"]
    status, _, out = call(suite.main, *quick, expectations(tmp_path / "ratios.json", at_least=1000.0))
    assert status == 1
    assert "ngram / generate: expected at least 1000.0, measured " in out
    status, _, out = call(suite.main, *quick, expectations(tmp_path / "ratios.json", at_least=0.0))
    assert status == 0
    assert "expected at least" not in out


BAD = [
    (["compare=['ngram / gnerate']"], "error: compare: expected 'one / another' of autoregressive, ngram, generate, "),
    (["compare=[generate]"], "error: compare: expected 'one / another' of "),
    (["check=/nowhere.json"], "error: check: expected a file of ratios written by "),
    (["write=/nowhere/ratios.json"], "error: write: expected a file in a folder there is, got '/nowhere/ratios.json'"),
    (["reference=unknown"], "reference: expected one of all, hf, "),
    (["batch.sizes=[1,3]", "prompts.limit=1", "prompts=jsonl"], "prompts.path: expected a value, got none"),
    (["tolerance=some"], "tolerance: expected a number, got 'some'"),
    (["batch.sizes=[]"], "error: batch.sizes: expected 1 or more, got 0"),
    (["batch.rounds=0"], "error: batch.rounds: expected an integer >= 1, got 0"),
    (["forward.long_prefix=4096"], "error: forward: expected forwards within the context window of 4096 tokens"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_input_is_one_clear_line_before_anything_is_measured(
    call: Callable[..., tuple], tmp_path: Path, overrides: list[str], message: str
) -> None:
    status, summary, out = call(suite.main, *TINY, *overrides)
    assert status not in (0, 1)
    assert message in out
    assert "Traceback" not in out
    assert not summary
    assert not (tmp_path / "steps.jsonl").exists()
