"""`python -m experiments.self_distill` as a user meets it, and what it leaves in the folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from experiments import self_distill
from specdec.decoding.generate import autoregressive
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.target import TargetModel
from specdec.prompts.sets import Prompt, PromptEncoder
from specdec.training.text import shard as shard_module
from specdec.training.text.index import committed
from specdec.training.text.self_distill import SelfDistillation
from specdec.training.text.self_written import turn_frame
from specdec.training.text.shard import Shard
from specdec.training.text.store import TextStore
from specdec.training.text.texts import HIDDEN, Origin, Text
from tests.support.commands import Done, command

ROOT = Path(__file__).resolve().parents[3]
TINY = ["target=tiny", "target.device=cpu", "answers.max_new_tokens=12", "slots=3"]


def write_prompts(file: Path, count: int, turns: Sequence[str] = ("tell me about",)) -> Path:
    lines = [{"question_id": f"q{i}", "category": "c", "turns": [f"{t} {i}" for t in turns]} for i in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    call = command(self_distill.main, tmp_path / "run", monkeypatch, capsys)
    return lambda *overrides: call(*TINY, f"folder={tmp_path / 'text'}", *overrides)


def test_answers_are_what_the_target_says(run: Callable[..., Done], tmp_path: Path, tiny: TargetModel) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 7)
    done = run("prompts=jsonl", f"prompts.path={file}", "answers.temperatures=[0.0]")
    assert done.status == 0, done.err
    assert "to make: 7 texts: at most 84 answer tokens to" in done.err
    assert "GiB are free" in done.err
    store = TextStore(tmp_path / "text")
    assert {text.id for text in store.texts} == {f"q{i}" for i in range(7)}
    encoder = PromptEncoder(tiny.tokenizer)  # type: ignore[arg-type]
    for text in store.texts:
        prompt = encoder.encode([f"tell me about {text.id[1:]}"], [])
        answer = autoregressive([prompt], tiny, SamplingParams(), StopRule(12, tiny.eos), [[0]]).texts[0]
        assert store.tokens(text).tolist() == prompt + answer
        assert text.answers == [[len(prompt), len(prompt + answer)]]
        assert store.has(text, HIDDEN)


def test_a_second_run_adds_what_is_missing_and_repeats_nothing(run: Callable[..., Done], tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 5)
    first = [f"prompts.path={file}", "prompts=jsonl", "prompts.limit=3"]
    run(*first)
    before = (tmp_path / "text" / "shard-0.jsonl").read_bytes()
    assert "nothing to do: 3 texts with 36 answer tokens are in" in run(*first).err
    run("prompts=jsonl", f"prompts.path={file}", "answers.samples=2", "features=[hidden,layer:1]")
    after = (tmp_path / "text" / "shard-0.jsonl").read_bytes()
    assert after.startswith(before)
    store = TextStore(tmp_path / "text")
    assert sorted((text.id, text.sample) for text in store.texts) == [(f"q{i}", s) for i in range(5) for s in range(2)]
    assert all(store.has(text, "layer:1") for text in store.texts)
    sources = json.loads((tmp_path / "text" / "index.json").read_text())["sources"]
    assert [source["config"]["prompts"]["limit"] for source in sources] == [3, 3, None]


def test_what_is_left_out_is_counted_in_a_line(run: Callable[..., Done], tmp_path: Path) -> None:
    turns = [["tell me a fact"], ["tell me a fact"], ["word " * 40], ["one", "two"], ["one", "two " * 10]]
    rows = [{"question_id": f"q{i}", "category": "c", "turns": turn} for i, turn in enumerate(turns)]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    options = ["prompts=jsonl", f"prompts.path={file}", "answers.longest_prompt=60"]
    for done in (run(*options), run(*options)):  # the second has nothing to do, and says the same
        assert done.status == 0, done.err
        line = next(line for line in done.err.splitlines() if line.startswith("left out: "))
        assert "1 prompts longer than answers.longest_prompt=60 tokens" in line
        assert "1 prompts that say the same as another" in line
    assert len(committed(tmp_path / "text")) == 3


def test_a_fault_says_what_is_kept(run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 5)
    append = Shard.append

    def fails(self: Shard, text: Text, *rest: Any) -> None:
        if len(self.texts) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "text" / "shard-0.tokens"))
        append(self, text, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Shard, "append", fails)
        done = run("prompts=jsonl", f"prompts.path={file}")
    assert done.status == 2
    assert f"2 texts are kept in {tmp_path / 'text'}: run the same command again to go on" in done.err
    assert "shard-0.tokens: expected a path that can be read and written, got 'No space left on device'" in done.err
    assert run("prompts=jsonl", f"prompts.path={file}").status == 0
    assert len(committed(tmp_path / "text")) == 5


def test_prompts_the_target_writes_itself(run: Callable[..., Done], tmp_path: Path, tiny: TargetModel) -> None:
    assert turn_frame(PromptEncoder.of(tiny))[0] == "<|im_start|>user\n"
    options = ["self_written.count=6", "self_written.longest=150", "self_written.openings=['Why ', 'How ']"]
    assert run(*options).status == 0
    prompts = [json.loads(line) for line in (tmp_path / "text" / "prompts-0.jsonl").read_text("utf-8").splitlines()]
    assert len(prompts) == 6
    assert all(prompt["turns"][0].startswith(("Why ", "How ")) for prompt in prompts)
    assert {text.id for text in committed(tmp_path / "text")} == {prompt["question_id"] for prompt in prompts}
    with (tmp_path / "text" / "prompts-0.jsonl").open("a") as out:
        out.write('{"question_id": "sel')  # killed while writing
    assert run("self_written.count=8", *options[1:]).status == 0
    again = [json.loads(line) for line in (tmp_path / "text" / "prompts-0.jsonl").read_text("utf-8").splitlines()]
    assert again[:6] == prompts
    assert len({prompt["question_id"] for prompt in again}) == len(again) == 8


def test_the_aim_in_tokens_ends_a_run(run: Callable[..., Done], tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 30)
    run("prompts=jsonl", f"prompts.path={file}", "answers.answer_tokens=60")
    made = sum(text.answer_tokens for text in committed(tmp_path / "text"))
    assert 60 <= made <= 60 + 3 * 12


def test_greedy_and_sampled_answers_are_dealt_by_the_prompt(run: Callable[..., Done], tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 60)
    run("prompts=jsonl", f"prompts.path={file}", "answers.max_new_tokens=2", "answers.temperatures=[0.0,0.0,0.5]")
    temperatures = [text.temperature for text in committed(tmp_path / "text")]
    assert set(temperatures) == {0.0, 0.5}
    assert 10 <= temperatures.count(0.5) <= 30  # of 60, a third: 2.7 standard deviations; the hashes are fixed


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ CONTENT }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def letters(content: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose text round-trips, as a real one's does and single bytes do not: every token is a letter."""
    model = BPE(vocab={chr(0x4E00 + i): i for i in range(256)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = TEMPLATE.replace("CONTENT", content)
    return fast


def answered(tmp_path: Path, tiny: TargetModel, monkeypatch: pytest.MonkeyPatch, content: str) -> TextStore:
    """A conversation of three turns and one of a single turn, answered greedily."""
    tokenizer = letters(content)
    monkeypatch.setattr(tiny, "tokenizer", tokenizer)
    turns = [str(tokenizer.decode(ids)) for ids in ([1, 2, 3], [4], [5, 6])]
    prompts = [Prompt("long", "c", tuple(turns)), Prompt("short", "c", (turns[0],))]
    work = SelfDistillation(tiny, prompts, StopRule(6, frozenset()), [0.0], slots=2)
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        work.run(shard)
    return TextStore(tmp_path)


def test_every_turns_answer_is_marked_and_nothing_else(
    tmp_path: Path, tiny: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = answered(tmp_path, tiny, monkeypatch, "message.content")
    by_id = {text.id: text for text in store.texts}
    ids = store.tokens(by_id["long"]).tolist()
    # [start] 3 [end] [start] ANSWER [end] [start] 1 [end] [start] ANSWER [end] [start] 2 [end] [start] ANSWER
    assert by_id["long"].answers == [[6, 12], [17, 23], [29, 35]]
    assert len(ids) == 35
    for begin, end in by_id["long"].answers:
        alone = autoregressive([ids[:begin]], tiny, SamplingParams(), StopRule(6), [[0]]).texts[0]
        assert ids[begin:end] == alone
    assert by_id["short"].answers == [[6, 12]]
    with torch.inference_mode(), tiny.stock() as model:
        expected = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(store.feature(by_id["long"], HIDDEN).float(), expected, atol=2e-3, rtol=2e-3)


def test_an_answer_the_template_rewrote_is_not_taken_for_the_targets(
    tmp_path: Path, tiny: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some templates drop what earlier answers said (a model's thoughts)."""
    forgetful = "message.content if message.role == 'user' else ''"
    store = answered(tmp_path, tiny, monkeypatch, forgetful)
    (text,) = [text for text in store.texts if text.id == "long"]
    assert text.answers == [[text.tokens - 6, text.tokens]]


def test_killed_and_run_again_it_ends_with_the_same_text(tmp_path: Path) -> None:
    """SIGKILL while texts are being committed; then the folder is that of a run nobody disturbed."""
    file = write_prompts(tmp_path / "p.jsonl", 120)
    command = [sys.executable, "-m", "experiments.self_distill", *TINY, "prompts=jsonl", f"prompts.path={file}"]
    command += ["answers.max_new_tokens=40", f"hydra.run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, f"folder={tmp_path / 'text'}"], cwd=ROOT, env=environment)
    lines = tmp_path / "text" / "shard-0.jsonl"
    deadline = time.monotonic() + 200
    while not (lines.exists() and lines.stat().st_size > 2000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    killed = len(committed(tmp_path / "text"))
    assert 0 < killed < 120, "killed too late to prove anything"
    for folder in ("text", "undisturbed"):
        subprocess.run([*command, f"folder={tmp_path / folder}"], cwd=ROOT, env=environment, check=True)
    stores = [TextStore(tmp_path / folder) for folder in ("text", "undisturbed")]
    texts = [{(t.key, t.sample): store.tokens(t).tolist() for t in store.texts} for store in stores]
    assert texts[0] == texts[1]
    assert len(stores[0].texts) == 120
    assert all(stores[0].has(text, HIDDEN) for text in stores[0].texts)


def test_the_prediction_bounds_what_is_written(run: Callable[..., Done], tmp_path: Path, tiny: TargetModel) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 20)
    run("prompts=jsonl", f"prompts.path={file}")
    prompts = [Prompt(f"q{i}", "c", (f"tell me about {i}",)) for i in range(20)]
    with Shard(tmp_path / "other", 0, Origin.of(tiny)) as shard:
        plan = SelfDistillation(tiny, prompts, StopRule(12), slots=3).plan(shard)
    written = sum((tmp_path / "text" / f"shard-0.{name}").stat().st_size for name in ("tokens", "hidden"))
    assert written <= plan.bytes <= 1.2 * written
    assert plan.answer_tokens == 20 * 12


def test_a_disk_that_is_too_small(run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 20)
    usage = shard_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shard_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    done = run("prompts=jsonl", f"prompts.path={file}")
    assert done.status == 2
    assert "expected 0.00 GiB of disk for at most" in done.err
    assert "got 0.00 GiB free; set answers.answer_tokens" in done.err
    assert not committed(tmp_path / "text")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["answers.longest_prompt=4"],
            "prompts: expected prompts of at most longest_prompt=4 tokens, got 2 longer ones",
        ),
        (["answers.temperatures=[]"], "temperatures: expected at least one, got none; use [0.0] for greedy text"),
        (["answers.temperatures=[-1.0]"], "answers.temperatures[0]: expected a number >= 0, got -1.0"),
        (["features=[layer:9]"], "features: expected 'hidden', or 'layer:k' with k from 0 to 1, got 'layer:9'"),
        (["answers.max_new_tokens=5000"], "expected prompt and new tokens within the context window of 4096 tokens"),
        (["import_from=nothing.xz"], "nothing.xz: expected a file written with export_to=, got"),
        (["slots=0"], "slots: expected an integer >= 1, got 0"),
    ],
)
def test_bad_input(run: Callable[..., Done], tmp_path: Path, overrides: list[str], message: str) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 2)
    done = run("prompts=jsonl", f"prompts.path={file}", *overrides)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_folder_of_another_target(run: Callable[..., Done], tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "p.jsonl", 2)
    run("prompts=jsonl", f"prompts.path={file}")
    done = run("prompts=jsonl", f"prompts.path={file}", "target.seed=1")
    assert done.status == 2
    assert "expected text made with the target of tiny" in done.err
