"""Real launchers and a real search, each with a job that fails among them: `make test-launchers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["target=tiny", "tracker=none", "report=false", "generation.max_new_tokens=6", "prompts.limit=2"]
LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": ["hydra.launcher.ray.remote.num_cpus=0.5"],
}


def start(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.bench", "-m", f"hydra.sweep.dir={folder}", *TINY, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)


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
    command = [sys.executable, "examples/search.py", *TINY[:2], *TINY[3:], "drafter=ngram", "trials=6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "best of 6 trials" in done.stdout
    assert "drafter.nodes=" in done.stdout
