"""Accuracies against a count by hand; the command, and the tree it saves in the drafter's hands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from drafters.medusa import Medusa
from drafters.medusa.formats import write_official
from drafters.medusa.measure import Accuracy, accuracies
from experiments import build_tree
from specdec.decoding.protocols import Session
from specdec.decoding.sampling import SamplingParams
from specdec.errors import InputError
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.training.text.shard import Shard
from specdec.training.text.texts import Origin, Text, is_validation
from specdec.trees.files import first_paths, guessed_accuracies, read_tree
from specdec.trees.topology import Topology
from tests.drafters.medusa.made import logits_by_hand, random_heads
from tests.support.commands import Done, command

SHORT = ["target=tiny", "target.device=cpu", "drafter.heads=fresh", "generation.max_new_tokens=12", "prompts.limit=2"]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    return command(build_tree.main, tmp_path / "run", monkeypatch, capsys)


@pytest.mark.parametrize("vocabulary", [None, torch.arange(0, 258, 3)], ids=["whole", "draft vocabulary"])
def test_ranks_are_what_a_count_by_hand_finds(tiny: TargetModel, vocabulary: torch.Tensor | None) -> None:
    """Two answers in one text; at every root inside an answer, the tokens after it that are the answer's too."""
    made = random_heads(tiny, 3, vocabulary=vocabulary)
    row = torch.randint(0, 256, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    row[6:20] = [row[6]] * 14  # something to be right about
    hidden = tiny.prefill(tiny.new_cache(1, 30), [row]).hidden[0]
    answers = [[5, 18], [24, 30]]
    expected = []
    for begin, end in answers:
        for root in range(begin, end - 3):
            logits = [logits_by_hand(made, tiny, hidden[root - 1], head) for head in range(3)]
            places = [logits[h].argsort(descending=True).tolist().index(row[root + 1 + h]) for h in range(3)]
            expected.append([place if place < 60 else -1 for place in places])
    ranks = Accuracy(made, tiny, 60).ranks(torch.tensor(row), hidden, answers)
    assert ranks.tolist() == expected
    assert {-1} < set(ranks.flatten().tolist())
    share = [[sum(r[h] == rank for r in expected) / len(expected) for rank in range(60)] for h in range(3)]
    torch.testing.assert_close(accuracies(ranks, 60), torch.tensor(share, dtype=torch.float64))


def test_a_tree_from_answers_to_prompts(tmp_path: Path, tiny: TargetModel, build: Callable[..., Done]) -> None:
    write_official(random_heads(tiny, 2), tmp_path / "heads", "tiny")
    tree = tmp_path / "heads" / "tree.yaml"
    done = build(*SHORT, f"drafter.heads={tmp_path / 'heads'}", "nodes=5", f"output={tree}", "assume=independence")
    assert done.status == 0, done.err
    assert "tokens per step" in done.out
    saved = yaml.safe_load(tree.read_text())
    assert tree.read_text().startswith("# python -m experiments.build_tree target=tiny")
    assert (saved["target"], saved["heads"], saved["assume"]) == ("tiny", str(tmp_path / "heads"), "independence")
    assert (saved["positions"], saved["counted_on"]) == (12 - 2, 12 - 2)  # chosen from one answer, counted on the other
    assert f"counted on {12 - 2} positions of texts that the tree was not chosen from" in done.out
    assert saved["tokens_per_step"] >= 1
    assert (len(saved["paths"]), len(saved["accuracies"]), len(saved["accuracies"][0])) == (5, 2, 10)
    assert saved["commit"]
    assert read_tree(tree) == Topology.of(saved["paths"])
    # a number takes the best paths of the tree beside the heads
    drafter = Medusa(str(tmp_path / "heads"), 3)
    drafter.start(Session(tiny, [[1]], SamplingParams(), 9))
    assert drafter._topology == Topology.of(saved["paths"][:3])
    with pytest.raises(InputError, match=r"drafter.tree: expected at most the 5 paths of .*tree.yaml, got 6; lower it"):
        Medusa(str(tmp_path / "heads"), 6).start(Session(tiny, [[1]], SamplingParams(), 9))


def test_a_tree_from_the_validation_split_of_a_data_folder(tmp_path: Path, build: Callable[..., Done]) -> None:
    target = load_tiny(device="cpu")
    ids, keys = list(range(40, 60)), ("00000000aaaa", "ffffffffaaaa")
    assert [is_validation(key) for key in keys] == [True, False]
    with Shard(tmp_path / "data", 0, Origin.of(target)) as shard:
        for key in keys:
            shard.append(Text(key, 0, key, "made", 0.0, shard.end, len(ids), [[4, 20]], 0), ids, {})
    done = build(*SHORT, f"data={tmp_path / 'data'}", "nodes=3", "assume=independence")
    assert done.status == 0, done.err
    saved = yaml.safe_load((tmp_path / "run" / "tree.yaml").read_text())
    assert (saved["positions"], saved["measured_on"]) == (16 - 4, str(tmp_path / "data"))
    assert (saved["counted_on"], saved["tokens_per_step"]) == (0, None)  # there is no second text
    done = build(*SHORT, f"data={tmp_path / 'data'}", "target.seed=3")
    assert "text made with the target of tiny" in done.err
    assert done.status == 2


def test_before_anything_was_measured_the_tree_is_a_guess(tmp_path: Path) -> None:
    topology = first_paths(15, tmp_path / "tree.yaml", 4)
    assert (topology.nodes, topology.paths[0]) == (16, (0,))
    assert first_paths(15, None, 2).depth == 2
    for head in guessed_accuracies(5):
        assert head == sorted(head, reverse=True)
        assert sum(head) < 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0], [1], [0, 0]]", None),
        ("{paths: [[0], [0, 1]]}", None),
        ("paths: [[0], [1, 1]]", "got [1, 1] without [1]; add the parent"),
        ("{nodes: 3}", "drafter.tree: expected a YAML file with index paths, got no `paths` in"),
        ("[[0], [", "drafter.tree: expected a YAML file with index paths, got"),
        ("paths: [[zero]]", "got the path ['zero']; count from 0"),
    ],
)
def test_tree_files(tmp_path: Path, content: str, message: str | None) -> None:
    file = tmp_path / "tree.yaml"
    file.write_text(content)
    if message is None:
        assert Medusa("fresh", str(file)).max_nodes == read_tree(file).nodes
        return
    with pytest.raises(InputError) as error:
        Medusa("fresh", str(file))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nodes=0", "error: nodes: expected an integer >= 1, got 0; change it"),
        ("assume=hope", "error: assume: expected joint or independence, got 'hope'; choose one"),
        ("output=/nowhere/tree.yaml", "error: output: expected a file in a folder that exists, got /nowhere/tree.yaml"),
        ("data=/nowhere", "error: /nowhere: expected a folder of self-distilled text, got no readable index.json"),
        ("generation.max_new_tokens=4", "error: data: expected answers longer than there are heads, got none; take"),
    ],
)
def test_what_cannot_be_measured_is_said(build: Callable[..., Done], override: str, message: str) -> None:
    done = build(*SHORT, override)
    assert done.status == 2
    assert message in done.err
