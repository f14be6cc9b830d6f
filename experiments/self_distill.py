"""Write text with the target for training drafters: tokens and hidden states in a folder.

python -m experiments.self_distill folder=data/smollm2 prompts=jsonl prompts.path=questions.jsonl
OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m experiments.self_distill ...    # a process per core; on a GPU some six
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf

from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.progress import progress, say
from experiments.common.settings import typed
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.files.durable import write_text
from specdec.model.target import TargetModel
from specdec.options import Count, Natural, NonNegative, Seed
from specdec.prompts.sets import Prompt, PromptEncoder, jsonl
from specdec.runs.provenance import provenance
from specdec.training.processes import process_group_ends
from specdec.training.text.archive import export_text, import_text
from specdec.training.text.features import check_names, complete, missing_tokens
from specdec.training.text.index import committed, note_source, shard_numbers
from specdec.training.text.passages import passage_prompts
from specdec.training.text.self_distill import SelfDistillation, prompt_key
from specdec.training.text.self_written import write_prompts
from specdec.training.text.shard import Shard
from specdec.training.text.store import TextStore
from specdec.training.text.texts import FEATURE_BYTES, HIDDEN, Origin, Text

GIVE = "for more text give prompts=..., self_written.count=... or passages.count=..."


@dataclass
class Answers:
    """The option `answers`, as in conf/self_distill.yaml."""

    max_new_tokens: Count
    temperatures: list[NonNegative]
    samples: Count
    longest_prompt: Count
    answer_tokens: Natural | None


@dataclass
class SelfWritten:
    """The option `self_written`, as in conf/self_distill.yaml."""

    count: Natural
    temperature: NonNegative
    top_p: float
    longest: Count
    openings: list[str]


@dataclass
class Passages:
    """The option `passages`, as in conf/self_distill.yaml."""

    count: Natural
    longest: Count
    categories: list[str] | None


@dataclass
class Options:
    """Options as in conf/self_distill.yaml."""

    folder: str
    import_from: str | None
    export_to: str | None
    features: list[str]
    answers: Answers
    self_written: SelfWritten
    passages: Passages
    slots: Count
    seed: Seed


@hydra.main(config_path=CONF, config_name="self_distill", version_base="1.3")
@Task
@process_group_ends()
def main(cfg: DictConfig) -> None:
    options = checked(cfg)
    prompts = instantiate(cfg.prompts) if cfg.get("prompts") else []
    state = PartialState(cpu=True)  # processes exchange no tensors, so any number may share a GPU
    if torch.cuda.is_available():
        torch.cuda.set_device(state.local_process_index % torch.cuda.device_count())
    target = instantiate(cfg.target)
    check_names(options.features, target)
    part, parts = state.process_index, state.num_processes
    with Shard(Path(options.folder), part, Origin.of(target)) as shard, keeping(shard):
        if not part:
            run = {key: value for key, value in provenance().items() if key in ("command", "commit", "started")}
            note_source(shard.folder, {**run, "config": OmegaConf.to_container(cfg, resolve=True)})
        if options.import_from and not part:
            say(f"{import_text(Path(options.import_from), shard):,} texts are new from {options.import_from}")
        add_features(options, target, shard, parts)
        with first(state):
            prompts = [*prompts, *long_prompts(options, target, shard.folder)]
        mine = [prompt for prompt in prompts if int(prompt_key(prompt), 16) % parts == part]
        answer(options, [*mine, *self_written(options, target, shard, part, parts)], target, shard, parts)
        add_features(options, target, shard, parts)  # features that were not stored while the text was written
    if options.export_to and not part:
        size = export_text(shard.folder, Path(options.export_to))
        say(f"{options.export_to}: {size:,} bytes, token ids of {len(committed(shard.folder)):,} texts")


@contextmanager
def keeping(shard: Shard) -> Iterator[None]:
    """Keep the finished texts if the run dies, and print their number."""
    try:
        yield
    except BaseException as error:
        again = "" if isinstance(error, InputError) else ": run the same command again to go on"
        say(f"{len(shard.texts):,} texts are kept in {shard.folder}{again}")
        raise


@contextmanager
def first(state: PartialState) -> Iterator[None]:
    """Run the block in the main process before all others.

    accelerate's own `main_process_first` is not used, because its barrier needs a GPU per process.
    """
    if not state.is_main_process:
        torch.distributed.barrier()
    yield
    if state.is_main_process and state.num_processes > 1:
        torch.distributed.barrier()


def self_written(options: Options, target: TargetModel, shard: Shard, part: int, parts: int) -> list[Prompt]:
    """Return this process's share of the prompts that the target writes, earlier runs included.

    Args:
        options: the options of the run.
        target: the model.
        shard: this process's part of the data folder.
        part: number of this process, from 0.
        parts: number of processes.
    """
    own = options.self_written
    share, left_out = own.count // parts + (part < own.count % parts), Counter[str]()
    if share:
        with progress("prompts written", share) as advance:
            write_prompts(
                target, shard.folder / f"prompts-{part}.jsonl", share, own.openings,
                SamplingParams(own.temperature, 0, own.top_p), longest=own.longest, slots=options.slots,
                seed=options.seed, part=part, parts=parts, on_prompt=lambda _: advance(1, ""), left_out=left_out,
            )  # fmt: skip
        say_left_out(left_out)
    files = [file for file in shard.folder.glob("prompts-*.jsonl") if file.stat().st_size]
    return [p for file in files if int(file.stem.removeprefix("prompts-")) % parts == part for p in jsonl(str(file))]


def long_prompts(options: Options, target: TargetModel, folder: Path) -> list[Prompt]:
    """Return the prompts made of passages, earlier runs included.

    They are kept in the folder, because new text in it would lead to other prompts.
    """
    own, file = options.passages, folder / "passages.jsonl"
    prompts = jsonl(str(file)) if file.exists() else []
    if len(prompts) < own.count:
        prompts += passage_prompts(
            TextStore(folder), PromptEncoder.of(target), own.count - len(prompts), longest=own.longest,
            categories=own.categories, seed=len(prompts),
        )  # fmt: skip
        write_text(file, "".join(prompt.line() for prompt in prompts))
    return prompts


def add_features(options: Options, target: TargetModel, own: Shard, parts: int) -> None:
    """Compute missing features of this process's texts, and of shards without a process in this run.

    Arguments as in `self_written`; `own` is its `shard`.
    """
    add_missing(options, target, own)
    for number in shard_numbers(own.folder):
        if number >= parts and number % parts == own.number:
            with Shard(own.folder, number, own.origin) as shard:
                add_missing(options, target, shard)


def add_missing(options: Options, target: TargetModel, shard: Shard) -> None:
    if missing := missing_tokens(shard, options.features):
        size = missing * FEATURE_BYTES * shard.origin.dim / 2**30
        say(f"features {', '.join(options.features)}: {missing:,} tokens to read, {size:.2f} GiB")
        with progress("tokens read", missing) as advance:
            complete(target, shard, options.features, on_text=lambda tokens: advance(tokens, ""))


def answer(options: Options, prompts: list[Prompt], target: TargetModel, shard: Shard, parts: int) -> None:
    """Answer the prompts that have no answer yet.

    Arguments as in `self_written`; `prompts` are those of this process.
    """
    texts, own = committed(shard.folder), options.answers
    have = sum(text.answer_tokens for text in texts)
    work = SelfDistillation(
        target, prompts, StopRule(own.max_new_tokens, target.eos), own.temperatures, own.samples, own.longest_prompt,
        options.slots, options.seed, None if own.answer_tokens is None else max(own.answer_tokens - have, 0) // parts,
        HIDDEN in options.features, {(text.key, text.sample) for text in texts},
    )  # fmt: skip
    if not prompts:
        if not (options.import_from or options.export_to):
            say(f"nothing to answer: {GIVE}")
        return
    plan, here = work.plan(shard, parts), f"{len(texts):,} texts with {have:,} answer tokens are in {shard.folder}"
    if not plan.texts or work.answer_tokens == 0:
        say_left_out(work.left_out)
        say(f"nothing to do: {here}, as many as were asked for; {GIVE}")
        return
    say(f"{here}; to make: {plan}")
    begun, made = time.monotonic(), 0
    with progress("answer tokens", plan.answer_tokens) as advance:

        def on_text(text: Text) -> None:
            nonlocal made
            made += text.answer_tokens
            advance(text.answer_tokens, f"at {made / (time.monotonic() - begun):.0f}/s")

        work.run(shard, on_text)
    say_left_out(work.left_out)
    say(f"{len(shard.texts):,} texts with {sum(t.answer_tokens for t in shard.texts):,} answer tokens in this shard")


def say_left_out(counts: Counter[str]) -> None:
    """Print what was left out and why, if anything was."""
    if shown := ", ".join(f"{count:,} {what}" for what, count in counts.items() if count):
        say(f"left out: {shown}")


def checked(cfg: DictConfig) -> Options:
    """Return the typed part of the config, checked before anything is loaded.

    Raises:
        InputError: a value of the wrong type or out of range.
    """
    options = typed(cfg, Options)
    SamplingParams(options.self_written.temperature, 0, options.self_written.top_p)
    StopRule(options.answers.max_new_tokens)
    return options


if __name__ == "__main__":
    launch(main)
