"""`python -m experiments.bench` as a user meets it: files, tables, sweeps, and every bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from experiments import bench
from experiments.sweeps.launch import launch
from specdec.decoding.decoder import Decoder
from specdec.metrics import StepMetrics, StepRecord

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "target=tiny",
    "target.device=cpu",
    "tracker=none",
    "generation.max_new_tokens=12",
    "prompts.limit=3",
    "report=false",
]
SUMMARY_KEYS = {
    "target", "drafter", "verifier", "acceptance", "device", "dtype", "threads", "temperature", "batch_size",
    "max_new_tokens", "prompts", "repeats", "tokens", "steps", "tokens_per_step", "acceptance_length",
    "acceptance_rate", "acceptance_at_depth", "draft_efficiency", "tokens_per_second",
    "autoregressive_tokens_per_second", "speedup", "speedup_ci95", "reference", "phase_ms", "divergence",
    "by_category", "peak_memory_mb",
}  # fmt: skip


@dataclass
class Done:
    status: int
    out: str
    err: str
    folder: Path

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text("utf-8"))

    def lines(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).read_text("utf-8").splitlines()]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Call the entry point in this process with overrides; a run folder of its own."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(*overrides: str, folder: Path = tmp_path / "run") -> Done:
        monkeypatch.setattr(sys, "argv", ["bench", f"hydra.run.dir={folder}", *TINY, *overrides])
        status = 0
        try:
            launch(bench.main)
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err, folder)

    return call


def test_a_run_leaves_its_files_and_prints_its_figures(run: Callable[..., Done]) -> None:
    done = run("repeats=2")
    assert done.status == 0
    assert set(done.summary) >= SUMMARY_KEYS
    assert {f.name for f in done.folder.iterdir()} >= {".hydra", "steps.jsonl", "generations.jsonl", "provenance.json"}
    assert "texts identical" in done.out
    assert "3/3" in done.out
    assert done.summary["divergence"] == {"identical": 3, "total": 3, "prompts": []}
    assert len(done.lines("generations.jsonl")) == done.summary["repeats"] * len(done.summary["by_category"])


def test_seeds_run_all_prompts_under_each_and_widen_the_intervals(run: Callable[..., Done], tmp_path: Path) -> None:
    sampled = ["generation.temperature=1.0"]
    done = run(*sampled, "seeds=[5,7]", "repeats=2", "prompts.limit=2")
    assert done.status == 0, done.err
    lines = done.lines("generations.jsonl")
    assert [(g["seed"], g["repeat"]) for g in lines] == [(5, 0)] * 2 + [(5, 1)] * 2 + [(7, 2)] * 2 + [(7, 3)] * 2
    texts = {(g["seed"], g["repeat"] % 2, g["prompt"]): g["tokens"] for g in lines}
    alone = run(*sampled, "seed=7", "repeats=2", "prompts.limit=2", folder=tmp_path / "alone").lines(
        "generations.jsonl"
    )
    assert {(7, g["repeat"], g["prompt"]): g["tokens"] for g in alone}.items() <= texts.items()
    assert len({tuple(text) for text in texts.values()}) == len(texts)
    assert done.summary["seeds"] == [5, 7]
    assert set(done.summary["by_seed"]) == {"5", "7"}
    assert sum(one["new_tokens"] for one in done.summary["by_seed"].values()) == done.summary["new_tokens"]
    assert "2 x 2 x 2 seeds" in done.out
    assert "by seed" in done.out
    one = run(*sampled, "seeds=[5,7]", "prompts.limit=1", folder=tmp_path / "one")
    assert one.summary["speedup_ci95"] is not None, "seeds alone are resampled too"


def test_the_summary_is_what_the_step_records_say(run: Callable[..., Done]) -> None:
    done = run()
    fields = StepRecord.__dataclass_fields__
    records = [StepRecord(**{key: line[key] for key in fields}) for line in done.lines("steps.jsonl")]
    for key, value in StepMetrics.of(records).as_dict().items():
        assert done.summary[key] == value, key
    assert done.summary["new_tokens"] == done.summary["tokens"] + 3  # the first token of each text has no step
    texts = {line["prompt"]: line["tokens"] for line in done.lines("generations.jsonl")}
    for prompt, tokens in texts.items():
        emitted = [token for line in done.lines("steps.jsonl") if line["prompt"] == prompt for token in line["tokens"]]
        assert tokens[1:] == emitted


def test_none_is_autoregressive(run: Callable[..., Done]) -> None:
    summary = run("drafter=none").summary
    assert summary["tokens_per_step"] == 1.0
    assert summary["acceptance_rate"] is None


def test_batches_play_all_turns_and_give_the_same_texts(run: Callable[..., Done], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    turns = [["one"], ["two", "and then", "at last"], ["three", "more"]]
    lines = [json.dumps({"question_id": i, "category": "c", "turns": t}) for i, t in enumerate(turns)]
    prompts.write_text("\n".join(lines), "utf-8")
    texts = []
    for size in (1, 3):
        options = ("prompts=jsonl", f"prompts.path={prompts}", f"generation.batch_size={size}")
        done = run(*options, folder=tmp_path / str(size))
        generations = sorted(done.lines("generations.jsonl"), key=lambda g: (g["prompt"], g["turn"]))
        assert [(g["prompt"], g["turn"]) for g in generations] == [
            (str(i), t) for i in range(3) for t in range(len(turns[i]))
        ]
        texts.append([g["tokens"] for g in generations])
        later = next(g for g in generations if g["turn"] == 2)
        assert later["prompt_tokens"] > sum(map(len, turns[1]))  # the answers were fed back
    assert texts[0] == texts[1]


def test_the_reference_is_timed_and_agrees(run: Callable[..., Done]) -> None:
    done = run("reference=hf_prompt_lookup", "generation.batch_size=2")
    reference = done.summary["reference"]
    assert reference["name"] == "generate"
    assert reference["identical"] == 3
    assert reference["speedup"] == pytest.approx(done.summary["tokens_per_second"] / reference["tokens_per_second"])
    assert done.summary["other_references"][0]["name"] == "generate with prompt lookup"
    assert done.summary["other_references"][0]["identical"] == 3


def test_assisted_generation_with_the_same_draft_model(run: Callable[..., Done]) -> None:
    done = run("drafter=draft_model", "drafter.model=tiny", "reference=hf_assisted", "prompts.limit=1")
    assert done.summary["acceptance_rate"] == 1.0
    assert done.summary["other_references"][0]["identical"] == 1


def test_sampled_texts_have_no_divergence_report(run: Callable[..., Done]) -> None:
    done = run("generation.temperature=0.8", "generation.top_p=0.9", "reference=hf")
    assert done.summary["divergence"] is None
    assert done.summary["reference"]["identical"] is None


def test_texts_that_part_are_reported_with_the_margin(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Decoder.autoregressive

    def wrong(*args: object) -> object:
        done = honest(*args)  # type: ignore[arg-type]
        done.texts[0][4] = (done.texts[0][4] + 1) % 250
        return done

    monkeypatch.setattr(Decoder, "autoregressive", wrong)
    divergence = run("prompts.limit=1").summary["divergence"]
    assert (divergence["identical"], divergence["total"]) == (0, 1)
    (prompt,) = divergence["prompts"]
    assert prompt["position"] == 4
    assert prompt["margin"] > 0.01  # a clear best token: no rounding explains this
    assert not prompt["explained"]


def test_a_lossy_rule_is_labelled_and_says_how_far_it_strays(run: Callable[..., Done]) -> None:
    done = run("acceptance=typical", "drafter=ngram_lm", "generation.temperature=1.0")
    assert done.summary["lossless"] is False
    assert "typical (lossy)" in done.out
    strays = done.summary["strays"]
    assert strays["equal_tokens"] is None
    assert strays["mean_logprob"] < 0
    assert strays["autoregressive_mean_logprob"] < 0
    greedy = run("acceptance=greedy").summary
    assert greedy["strays"]["equal_tokens"] == 1.0
    assert greedy["strays"]["mean_logprob"] == pytest.approx(greedy["strays"]["autoregressive_mean_logprob"])
    assert run().summary["strays"] is None


def test_a_sweep_leaves_a_folder_per_job_and_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = ["bench", "-m", f"hydra.sweep.dir={tmp_path}", *TINY, "drafter=none,ngram", "report=true"]
    monkeypatch.setattr(sys, "argv", argv)
    launch(bench.main)
    assert all((tmp_path / str(job) / "summary.json").exists() for job in (0, 1))
    assert all((tmp_path / job / "report.html").exists() for job in ("", "0", "1"))
    table = capsys.readouterr().out.split("by job")[1]
    assert table.rstrip().endswith(f"report: {tmp_path / 'report.html'}")
    assert "drafter=none" in table
    assert "drafter=ngram" in table
    assert "acceptance at depth" in table
    assert "by category" in table
    assert not (tmp_path / "sweep.html").exists()


def test_a_sweep_over_a_number_ends_in_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = ["drafter=early_exit", "drafter.adapter=plain", "target.layers=3", "drafter.exit_layer=2,1"]
    monkeypatch.setattr(sys, "argv", ["bench", "-m", f"hydra.sweep.dir={tmp_path}", *TINY, *drafter, "prompts.limit=1"])
    launch(bench.main)
    page = (tmp_path / "sweep.html").read_text("utf-8")
    assert '"x":[1.0,2.0]' in page
    assert "drafter.exit_layer" in page


BAD = [
    (["generation.max_new_tokens=0"], "generation.max_new_tokens: expected an integer >= 1, got 0"),
    (["generation.temperature=-1"], "generation.temperature: expected a number >= 0, got -1.0"),
    (["generation.top_p=0"], "generation.top_p: expected a number in (0, 1], got 0.0"),
    (["generation.top_p=1.1"], "generation.top_p: expected a number in (0, 1], got 1.1"),
    (["generation.batch_size=0"], "generation.batch_size: expected an integer >= 1, got 0"),
    (["seeds=[1,2,1]"], "seeds: expected seeds that differ, got [1, 2, 1]; raise repeats instead"),
    (["seeds=[-1]"], "seeds"),
    (["repeats=0"], "repeats: expected an integer >= 1, got 0"),
    (["repeats=many"], "repeats: expected an integer, got 'many'"),
    (["drafter=ngrm"], "got 'ngrm'; did you mean ngram?"),
    (
        ["generation.temprature=1"],
        "generation.temprature: expected an option that exists (max_new_tokens, temperature, ",
    ),
    (["target.device=cuda:9"], "target.device: expected one of auto, cpu"),
    (["target.kernel=flash_attn"], "target.kernel: expected"),
    (
        ["target=hf", "target.name=/nowhere"],
        "target.name: expected the hub id or the folder of a causal language model",
    ),
    (["target=hf"], "target.name: expected a value, got none; pass target.name=..."),
    (["drafter=draft_model"], "drafter.model=auto: expected a target that draft_model weights are shipped for"),
    (["drafter=early_exit"], "drafter.exit_layer: expected 1 to 1, fewer than the 2 layers of the target tiny, got 10"),
    (["prompts=jsonl", "prompts.path=/nowhere.jsonl"], "prompts.path: expected a readable JSONL file"),
    (["generation.max_new_tokens=4090"], "expected prompt and new tokens within the context window of 4096 tokens"),
    (["drafter.depth=0"], "drafter.depth: expected an integer >= 1, got 0"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda x: x[0][:40] if isinstance(x, list) else "")
def test_bad_input_is_one_clear_line(run: Callable[..., Done], overrides: list[str], message: str) -> None:
    if overrides == ["target.device=cuda:9"] and torch.cuda.device_count() > 9:
        pytest.skip("this machine has ten GPUs")
    done = run(*overrides)
    assert done.status != 0
    assert done.err.startswith("error: ")
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (done.folder / "summary.json").exists()
    assert not (done.folder / "steps.jsonl").exists()


def test_an_output_folder_that_cannot_be_written(run: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(folder=tmp_path / "file" / "run")
    assert done.status == 2
    assert done.err.startswith("error: hydra.run.dir: expected a folder that can be written")


def test_a_prompt_is_named_when_it_is_too_long(run: Callable[..., Done], tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"question_id": "q9", "category": "c", "turns": ["x" * 5000]}), "utf-8")
    done = run("prompts=jsonl", f"prompts.path={file}")
    assert done.status == 2
    assert "error: prompt q9: expected prompt and new tokens within the context window" in done.err


def test_memory_that_runs_out_is_named(run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Decoder, "speculative", full)
    done = run()
    assert done.status == 2
    assert "memory: expected the batch to fit, got 'CUDA out of memory.'; lower generation.batch_size" in done.err


def test_a_bug_keeps_its_traceback_and_the_steps_made(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    honest, calls = Decoder.speculative, []

    def fails_late(*args: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("a bug")
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "speculative", fails_late)
    with pytest.raises(RuntimeError, match="a bug"):
        run(folder=tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text("utf-8"))["status"] == "failed"
    assert len({line["prompt"] for line in Done(0, "", "", tmp_path).lines("steps.jsonl")}) == 2


def test_ctrl_c_keeps_finished_steps_and_exits_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.bench", f"hydra.run.dir={tmp_path}", *TINY]
    command += ["prompts.limit=60", "repeats=200", "generation.max_new_tokens=64"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell are told to ignore it
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    steps = tmp_path / "steps.jsonl"
    deadline = time.monotonic() + 120
    while not (steps.exists() and steps.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert all(json.loads(line) for line in steps.read_text("utf-8").splitlines())
    assert json.loads((tmp_path / "provenance.json").read_text("utf-8"))["status"] == "interrupted"
    assert not (tmp_path / "summary.json").exists()


def test_a_drafter_that_learns_says_from_how_much_and_refuses_to_see_a_text_twice(run: Callable[..., Done]) -> None:
    online = ("drafter=suffix", "drafter.learn=online")
    assert run(*online).summary["known_tokens"] == 0
    assert run("drafter=suffix").summary["known_tokens"] is None
    done = run(*online, "repeats=2")
    assert done.status == 2
    assert "drafter.learn: expected off, because every prompt runs several times, got online, 2 times" in done.err
