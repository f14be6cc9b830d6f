"""Real launchers and a real search, each with a job that fails among them: `make test-launchers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.sweeps import sweep

ROOT = Path(__file__).resolve().parents[2]
TINY = ["target=tiny", "tracker=none", "report=false", "generation.max_new_tokens=6", "prompts.limit=2"]
LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": ["hydra.launcher.ray.remote.num_cpus=0.5"],
}


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "experiments.bench", "-m", f"hydra.sweep.dir={folder}", *TINY, *overrides]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}


def start(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    words = command(folder, *overrides)
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_runs_all_jobs_and_lists_the_one_that_failed(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    done = start(tmp_path, f"hydra/launcher={launcher}", "drafter.depth=2,0,3", *LAUNCHERS[launcher])
    assert done.returncode == 3, done.stderr
    assert "by job" in done.stdout
    assert "1 of 3 jobs have not finished" in done.stdout
    records = [json.loads((tmp_path / str(n) / "job.json").read_text("utf-8")) for n in range(3)]
    assert [record["status"] for record in records] == ["finished", "failed", "finished"]
    assert (tmp_path / "sweep.html").exists()
    (line,) = (tmp_path / "failed.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["error"].startswith("drafter.depth: expected an integer >= 1, got 0")
    assert "ConfigStore schema" not in done.stderr


def test_a_job_that_is_killed_and_started_again_starts_clean(tmp_path: Path) -> None:
    """Slurm takes a node away: SIGKILL, then the same task in the same folder."""
    task, folder = ["generation.max_new_tokens=48", "prompts.limit=10", "repeats=4"], tmp_path / "0"
    first = subprocess.Popen(command(tmp_path, *task), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    begun = time.monotonic()
    while not (folder / "steps.jsonl").exists() or not (folder / "steps.jsonl").stat().st_size:
        assert first.poll() is None
        assert time.monotonic() - begun < 300
        time.sleep(0.1)
    first.kill()
    first.wait()
    cut = (folder / "steps.jsonl").read_bytes()
    assert sweep.read(tmp_path).jobs[0].status == "killed"
    done = start(tmp_path, *task, "sweep.resume=true")
    assert done.returncode == 0, done.stderr
    assert (folder / "previous-1" / "steps.jsonl").read_bytes() == cut
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    steps = (folder / "steps.jsonl").read_text("utf-8").splitlines()
    assert len(steps) == summary["steps"], "nothing of the first attempt is mixed in"
    again = start(tmp_path, *task, "sweep.resume=true")
    assert again.returncode == 0, again.stderr
    assert "finished before, kept" in again.stderr


def test_a_search_of_six_trials_maximises_the_objective(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=search", "hydra.sweeper.n_trials=6", "objective=tokens_per_step"]
    done = start(tmp_path, *search, "drafter.depth=range(0,4)")
    assert done.returncode in (0, 3), done.stderr
    records = [json.loads((tmp_path / str(n) / "job.json").read_text("utf-8")) for n in range(6)]
    values = [record["value"] for record in records if record["status"] == "finished"]
    assert values
    best = (tmp_path / "optimization_results.yaml").read_text("utf-8")
    assert f"best_value: {max(values)}" in best


def test_the_example_searches_with_optunas_own_study() -> None:
    pytest.importorskip("optuna")
    words = [sys.executable, "examples/search.py", *TINY[:2], *TINY[3:], "drafter=ngram", "trials=6"]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "best of 6 trials" in done.stdout
    assert "drafter.nodes=" in done.stdout
