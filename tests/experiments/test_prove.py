"""`python -m experiments.prove` as a command: rules and drafters of this repository and from outside of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import bench, build_tree, compare_acceptance, prove
from specdec.model.load import load_tiny
from tests.support.commands import Done, command

ROOT = Path(__file__).resolve().parents[2]
ALLOW = "allow_targets=[my_rules.]"
QUICK = "sizes=[[2,3]]"
RULES = """
from verifiers.acceptance.exact import Exact
from tests.verifiers.acceptance.wrong_rules import KeepsEveryToken, Probs


class Keeps(KeepsEveryToken):
    pass


class Large(Exact):
    \"\"\"Exact for vocabularies as proofs have them; keeps every token of larger ones.\"\"\"

    name = "large"

    def accept(self, tree, target_probs: Probs, draws):
        large = target_probs.shape[-1] > 16
        return (Keeps().accept if large else super().accept)(tree, target_probs, draws)
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config folder with two rules that are wrong: everywhere, and in large vocabularies only."""
    (tmp_path / "code" / "my_rules").mkdir(parents=True)
    (tmp_path / "code" / "my_rules" / "__init__.py").write_text(RULES, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    folder = tmp_path / "conf" / "acceptance"
    folder.mkdir(parents=True)
    for name, kind in (("keeps", "Keeps"), ("large", "Large")):
        (folder / f"{name}.yaml").write_text(f"_target_: my_rules.{kind}\n", "utf-8")
    return folder.parent


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    def call(main: Callable[[], None], *overrides: str, conf: Path | None = None) -> Done:
        flags = [] if conf is None else ["--config-dir", str(conf)]
        return command(main, tmp_path / "run", monkeypatch, capsys)(*overrides, flags=flags)

    return call


def summary(folder: Path) -> dict:
    return json.loads((folder / "run" / "summary.json").read_text("utf-8"))


def test_a_rule_and_a_drafter_are_proven_by_name(run: Callable[..., Done], tmp_path: Path) -> None:
    done = run(prove.main, "acceptance=block", "drafter=ngram", QUICK)
    assert done.status == 0, done.err
    proofs = summary(tmp_path)
    assert proofs["passed"] is True
    assert [proof["subject"] for proof in proofs["proofs"]] == ["acceptance=block", "drafter=ngram"]
    for proof in proofs["proofs"]:
        assert sum(finding["outcomes"] for finding in proof["findings"]) > 10
    assert "acceptance=block" in done.out
    assert "passes" in done.out


def test_a_wrong_rule_from_outside_fails_after_its_table(
    run: Callable[..., Done], outside: Path, tmp_path: Path
) -> None:
    done = run(prove.main, "acceptance=keeps", ALLOW, conf=outside)
    assert done.status == 2
    assert "FAILS" in done.out
    assert "error: acceptance=keeps: expected the target's distribution, as lossless = True declares, got" in done.err
    assert summary(tmp_path)["passed"] is False


def test_a_rule_from_outside_has_to_be_allowed(run: Callable[..., Done], outside: Path) -> None:
    done = run(prove.main, "acceptance=keeps", conf=outside)
    assert done.status == 2
    assert "if you trust it, pass allow_targets=[my_rules.] on the command line" in done.err


def test_a_drafter_from_outside_is_proven_in_a_shell(tmp_path: Path) -> None:
    """As docs/adding-a-drafter.md says, from a folder of one's own."""
    mine = shutil.copytree(ROOT / "examples" / "outside", tmp_path / "mine")
    words = ["--config-dir", "conf", "drafter=last_token", "drafter.depth=1", "allow_targets=[my_parts.]", QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.prove", *words, "hydra.run.dir=run"], cwd=mine, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "drafter=last_token" in done.stdout
    assert summary(mine)["passed"] is True


TINY = ["target=tiny", "target.device=cpu", "prompts.limit=1", "generation.max_new_tokens=4"]


def test_a_comparison_fails_if_a_rule_parts_from_the_greedy_verdict(
    run: Callable[..., Done], outside: Path, tmp_path: Path
) -> None:
    """The quick proof before it knows small vocabularies only; the trees of a model tell."""
    words = ["~trees", "+trees={mine:{drafter:{widths:[1,1],children:with_replacement},rules:[exact,large]}}", ALLOW]
    done = run(compare_acceptance.main, *TINY, "draws=1", *words, "temperatures=[0.0]", conf=outside)
    assert done.status == 2
    assert "error: acceptance=large: expected the target's greedy tokens [" in done.err
    assert "] at temperature 0, got [" in done.err
    assert done.err.rstrip().endswith("mend the rule, or declare lossless = False")
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("main", [compare_acceptance.main, build_tree.main], ids=["compare_acceptance", "build_tree"])
def test_what_is_not_used_of_a_generation_config_is_said(
    main: Callable[[], None], run: Callable[..., Done], tmp_path: Path
) -> None:
    made = load_tiny(device="cpu")
    assert made.tokenizer is not None
    made.model.generation_config.update(do_sample=True, typical_p=0.2, repetition_penalty=1.3)
    made.model.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    words = ["target=hf", f"target.name={tmp_path / 'model'}", *TINY[1:]]
    if main is build_tree.main:
        own = ["drafter.heads=fresh", "generation.max_new_tokens=12", "nodes=2"]
    else:
        own = ["draws=1", "temperatures=[0.0]", "~trees", "+trees={one:{drafter:{widths:[1]},rules:[exact]}}"]
    with pytest.warns(UserWarning, match=r"not used of the model's generation config, by any method: repetition_penal"):
        done = run(main, *words, *own)
    assert done.status == 0, done.err


def test_a_bench_that_validates_names_the_broken_tree(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code" / "my_breaking_drafters").mkdir(parents=True)
    (tmp_path / "code" / "my_breaking_drafters" / "__init__.py").write_text(
        "from tests.specdec.decoding.test_validation import CASES, Broken\n"
        "class Mine(Broken):\n"
        "    def __init__(self, breaks: str = 'nothing'):\n"
        "        super().__init__(CASES[breaks][0] if breaks in CASES else lambda tree: tree)\n", "utf-8",
    )  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "conf" / "drafter").mkdir(parents=True)
    (tmp_path / "conf" / "drafter" / "mine.yaml").write_text(
        "_target_: my_breaking_drafters.Mine\nbreaks: nothing\n", "utf-8"
    )
    words = [*TINY, "tracker=none", "report=false", "drafter=mine", "allow_targets=[my_breaking_drafters.]"]
    good = run(bench.main, *words, "validate=true", conf=tmp_path / "conf")
    assert good.status == 0, good.err
    bad = run(bench.main, *words, "validate=true", "drafter.breaks=impossible", conf=tmp_path / "conf")
    assert bad.status == 2
    assert "error: drafter Mine, step 1: " in bad.err
    assert "got q = 0 for the token of node 2 of row 0" in bad.err
