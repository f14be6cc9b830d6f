"""Compare a drafter with autoregressive decoding, in one process, taking turns.

All methods generate the text of a prompt one right after the other, in rotating order, so that noise of the machine
affects all of them alike. This module neither reads configs nor prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from specdec.decoding.decoder import Decoder
from specdec.decoding.generate import SHORTEN, longest_text
from specdec.decoding.protocols import Learner, Preparing, Session, traits_of
from specdec.errors import InputError
from specdec.exactness.rules import require_proven
from specdec.measure.quiet import Watch
from specdec.measure.rivals import Reference
from specdec.measure.summarise import quietness, summarise
from specdec.measure.trials import BASE, OURS, Results, Round, Trial
from specdec.metrics import StepRecord
from specdec.prompts.sets import Prompt, PromptEncoder, PromptSet, Skipped
from specdec.runs.log import RunLog
from specdec.runs.summary import LeftOut, Setting, Summary

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Benchmark:
    """Run prompts with a drafter, with the autoregressive baseline and with references such as `transformers`.

    Turns of a conversation run in order. All methods continue with the baseline's answer, so that they always read the
    same prompt.

    Args:
        decoder: drafter, verifier, rule, sampling and stop rule.
        prompts: the prompts.
        batch_size: prompts that are decoded together; the last batch may be smaller.
        repeats: times that all prompts run under each seed.
        seeds: seeds of the sampling; intervals are over prompts and seeds.
        references: other methods to time on the same prompts.
        validate: check every proposed tree. This waits for the device, so timings then mean little.
        skipped: prompts that were left out (`fitting`), listed in the summary.
        repeat_disturbed: largest number of rounds to repeat because something else used the machine, as a share of all
            rounds; the quieter of the two counts.

    Raises:
        InputError: a prompt is empty or too long, a batch does not fit memory, a rule is declared lossless and is not,
            or a tree is not valid.
    """

    decoder: Decoder
    prompts: Sequence[Prompt]
    batch_size: int = 1
    repeats: int = 1
    seeds: Sequence[int] = (0,)
    references: Sequence[Reference] = ()
    validate: bool = False
    skipped: Sequence[Skipped] = ()
    repeat_disturbed: float = 0.0

    def fitting(self) -> Benchmark:
        """Return a copy without the prompts that are too long, if `prompts` is a `PromptSet` that skips them.

        Raises:
            InputError: all prompts are too long.
        """
        if not isinstance(self.prompts, PromptSet):
            return self
        kept, skipped = self.prompts.fitting(lambda prompt: len(self._encode(prompt, 1, [])), self._room)
        return replace(self, prompts=PromptSet(kept, self.prompts.too_long), skipped=skipped)

    def check(self) -> None:
        """Refuse bad input before the first token is generated.

        Raises:
            InputError: as in the class; trees are checked later, during the run.
        """
        target = self.decoder.target
        require_proven(self.decoder.rule)
        self._require_one_pass()
        self.decoder.sampling.say_not_followed(target.model)
        for prompt in self.prompts:
            row = self._encode(prompt, 1, [])
            fix = f"{SHORTEN}, or leave it out with prompts.too_long=skip"
            longest = longest_text([row], self.decoder.stop, target.context_window, f"prompt {prompt.id}", fix)
            # raises if the chat template cannot write all turns
            self._encode(prompt, len(prompt.turns), ["..."] * (len(prompt.turns) - 1))
        # `start` raises if the drafter cannot serve this target
        capacity = longest + self.decoder.drafter.max_nodes
        sampling = self.decoder.sampling.bound(target.model, [row], self.decoder.stop)
        begin, stop = self.decoder.verifier.begin, self.decoder.stop
        self.decoder.drafter.start(Session(target, [row], sampling, capacity, begin, stop))

    def _require_one_pass(self) -> None:
        """Refuse to run a prompt again once its text was learnt."""
        passes = self.repeats * len(self.seeds)
        if traits_of(self.decoder.drafter).learns and passes > 1:
            raise InputError(
                "drafter.learn", expected="off, because every prompt runs several times", got=f"online, {passes} times",
                fix="set repeats=1 with one seed, or drafter.learn=off",
            )  # fmt: skip

    def run(self, log: RunLog, on_trial: Callable[[Trial], None] = lambda _: None) -> Summary:
        """Run everything and return the summary, without the names of the parts.

        Args:
            log: takes step records and texts as soon as they are made.
            on_trial: called after each trial.
        """
        self._warm_up()
        known = traits_of(self.decoder.drafter).known_tokens
        results, ended = Results(), list(self.skipped)
        spare = Spare(round(self.repeat_disturbed * self.turns / self.batch_size))
        for repeat in range(self.repeats * len(self.seeds)):
            for number, batch in enumerate(self._batches()):
                for new_trials, new_steps in self._conversation(batch, number, repeat, log, ended, spare):
                    results.add(new_trials, new_steps)
                    for trial in new_trials:
                        on_trial(trial)
        whole = summarise(results, self.decoder, [method.name for method in self.references])
        quiet, skipped = quietness(results.trials, spare.used), [LeftOut(**vars(one)) for one in ended]
        setting = replace(self.setting, known_tokens=known)
        return replace(whole, **vars(setting), quiet=quiet, skipped=skipped)

    @property
    def setting(self) -> Setting:
        """The options and the machine of the run, without the names of the parts. Complete after `check`."""
        decoder, target, size = self.decoder, self.decoder.target, traits_of(self.decoder.drafter).size
        return Setting(
            acceptance=decoder.rule.name,
            lossless=decoder.rule.lossless,
            device=str(target.device),
            dtype=str(target.dtype).removeprefix("torch."),
            kernel=target.kernel.name,
            threads=torch.get_num_threads(),
            temperature=decoder.sampling.temperature,
            batch_size=self.batch_size,
            max_new_tokens=decoder.stop.max_new_tokens,
            repeats=self.repeats,
            seeds=list(self.seeds),
            parameters_added=size.parameters,
            training_tokens=size.training_tokens,
        )

    @property
    def turns(self) -> int:
        """Number of trials in a run."""
        return sum(len(prompt.turns) for prompt in self.prompts) * self.repeats * len(self.seeds)

    @property
    def _encoder(self) -> PromptEncoder:
        return PromptEncoder.of(self.decoder.target)

    def _encode(self, prompt: Prompt, turns: int, answers: Sequence[str]) -> list[int]:
        return self._encoder.encode(prompt.turns[:turns], answers, f"prompt {prompt.id}", prompt.system)

    @property
    def _room(self) -> int | None:
        """Largest number of tokens in a prompt, or None if unlimited."""
        window = self.decoder.target.context_window
        return None if window is None else window - self.decoder.stop.max_new_tokens

    def _batches(self) -> list[range]:
        """Return the indices of the prompts of each batch."""
        places = range(len(self.prompts))
        return [places[i : i + self.batch_size] for i in range(0, len(places), self.batch_size)]

    def _warm_up(self) -> None:
        """Run every method once at each batch size.

        If forwards are captured as graphs, one prompt is made as long as the longest text will be: caches are then
        large enough from the start, and neither they nor the graphs are replaced later.
        """
        few, rows = min(WARM_UP_TOKENS, self.decoder.stop.max_new_tokens), self._first_rows()
        short = replace(self, decoder=replace(self.decoder, stop=replace(self.decoder.stop, max_new_tokens=few)))
        end = max(map(len, rows)) + self.decoder.stop.max_new_tokens - few
        for size in dict.fromkeys(len(batch) for batch in self._batches()):
            ids = rows[:size]
            if self.decoder.target.graphs is not None:
                ids[0] = (ids[0] * (end // len(ids[0]) + 1))[:end]
            for method in short._methods(ids, [[0]] * size, []).values():
                method()

    def _first_rows(self) -> list[list[int]]:
        """Return the token ids of every prompt's first turn."""
        return [self._encode(prompt, 1, []) for prompt in self.prompts]

    def _conversation(
        self, batch: range, number: int, repeat: int, log: RunLog, ended: list[Skipped], spare: Spare
    ) -> Iterator[tuple[list[Trial], list[StepRecord]]]:
        """Run all turns of a batch of prompts; rows leave the batch when their conversation is over.

        Args:
            batch: indices of the prompts.
            number: index of the batch.
            repeat: index of the repeat, counted on over the seeds.
            log: takes step records and texts.
            ended: takes the conversations that end because they became too long, if these are to be skipped.
            spare: counts the rounds that may be repeated.

        Yields:
            For each turn, the trials of the rows and the step records.
        """
        answers: dict[int, list[str]] = {place: [] for place in batch}
        seed, again = self.seeds[repeat // self.repeats], repeat % self.repeats
        for turn in range(max(len(self.prompts[place].turns) for place in batch)):
            going = [place for place in answers if turn < len(self.prompts[place].turns)]
            encoded = {place: self._encode(self.prompts[place], turn + 1, answers[place]) for place in going}
            for place in self._outgrown(encoded):
                ended.append(Skipped(self.prompts[place].id, turn, len(encoded.pop(place)), self._room or 0))
                del answers[place]
            if not encoded:
                return
            rows, ids = [self.prompts[place] for place in encoded], list(encoded.values())
            seeds = [[seed, again, turn, place] for place in encoded]
            steps: list[StepRecord] = []
            context = [{"prompt": p.id, "category": p.category, "turn": turn, "repeat": repeat} for p in rows]
            try:
                done = self._round(ids, seeds, repeat + number + turn, steps)
                if done.disturbance and spare.take():
                    second = self._round(ids, seeds, repeat + number + turn, [])
                    done = min(done, second, key=lambda one: one.disturbance)
                    steps = done.steps
            finally:
                log.steps(steps, context)
            trials = []
            for r, (place, prompt) in enumerate(zip(encoded, rows, strict=True)):
                of_row = {name: texts[r] for name, texts in done.texts.items()}
                share = {name: seconds / len(rows) for name, seconds in done.seconds.items()}
                emitted = [step.emitted for step in steps if step.row == r]
                of_steps = (sum(emitted), len(emitted), done.conditions, seed)
                trials.append(Trial(prompt, place, turn, repeat, number, ids[r], of_row, share, *of_steps))
                answers[place].append(self._encoder.decode(of_row[BASE]))
            log.generations([self._generation(trial) for trial in trials])
            if isinstance(self.decoder.drafter, Learner):  # only now: no text is drafted from itself
                self.decoder.drafter.learn(
                    [[*prompt, *text] for prompt, text in zip(ids, done.texts[OURS], strict=True)]
                )
            yield trials, steps

    def _round(self, ids: list[list[int]], seeds: list[list[int]], number: int, steps: list[StepRecord]) -> Round:
        """Run every method once on a batch.

        Args:
            ids: token ids of each prompt.
            seeds: seeds of each row.
            number: index of the round; the method that goes first rotates with it.
            steps: takes the step records of the drafter's method.
        """
        if isinstance(self.decoder.drafter, Preparing):
            self.decoder.drafter.prepare(self.decoder.target, ids, self.decoder.sampling, self.decoder.stop)
        methods = self._methods(ids, seeds, steps)
        names, device = list(methods), self.decoder.target.device
        first = number % len(names)
        done = Round({}, {}, {}, steps)
        for name in names[first:] + names[:first]:
            with Watch(device) as watch:
                done.texts[name], done.seconds[name] = methods[name]()
            done.conditions[name] = watch.conditions
        return done

    def _outgrown(self, encoded: Mapping[int, list[int]]) -> list[int]:
        """Return the indices of conversations to skip because their next answer does not fit the context window."""
        room = self._room if isinstance(self.prompts, PromptSet) and self.prompts.skips else None
        return [] if room is None else [place for place, ids in encoded.items() if len(ids) > room]

    def _methods(
        self, ids: list[list[int]], seeds: list[list[int]], steps: list[StepRecord]
    ) -> dict[str, Callable[[], tuple[list[list[int]], float]]]:
        target = self.decoder.target

        def base() -> tuple[list[list[int]], float]:
            done = self.decoder.autoregressive(ids, seeds)
            return done.texts, done.seconds

        def ours() -> tuple[list[list[int]], float]:
            done = self.decoder.speculative(ids, seeds, steps, self.validate)
            return done.texts, done.seconds

        def reference(method: Reference) -> Callable[[], tuple[list[list[int]], float]]:
            return lambda: method.generate(ids, target, self.decoder.sampling, self.decoder.stop, seeds[0][0])

        return {BASE: base, OURS: ours, **{method.name: reference(method) for method in self.references}}

    def _generation(self, trial: Trial) -> dict[str, Any]:
        return {
            "prompt": trial.prompt.id,
            "category": trial.prompt.category,
            "turn": trial.turn,
            "repeat": trial.repeat,
            "seed": trial.seed,
            "prompt_tokens": len(trial.ids),
            "prompt_text": trial.prompt.turns[trial.turn],
            "text": self._encoder.decode(trial.texts[OURS]),
            "pieces": self._encoder.pieces(trial.texts[OURS]),
            "tokens": trial.texts[OURS],
            "identical": trial.texts[OURS] == trial.texts[BASE] if self.decoder.sampling.greedy else None,
            "seconds": trial.seconds,
            "baseline_tokens": len(trial.texts[BASE]),
            "conditions": {name: conditions.as_dict() for name, conditions in trial.conditions.items()},
        }


@dataclass
class Spare:
    """Counter of the rounds that may be repeated: at most `left`, of which `used` are used."""

    left: int
    used: int = 0

    def take(self) -> bool:
        """Return whether another round may be repeated, and count it."""
        if self.used == self.left:
            return False
        self.used += 1
        return True
