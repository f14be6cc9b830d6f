"""Compare a drafter with autoregressive decoding, in one process, taking turns.

All methods generate the text of a prompt one right after the other, in rotating order, so that noise of the machine
affects all of them alike. This module neither reads configs nor prints.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from specdec.decoding.decoder import Decoder
from specdec.decoding.generate import SHORTEN, longest_text
from specdec.decoding.protocols import Preparing, Session, traits_of
from specdec.exactness.rules import require_proven
from specdec.intervals import Interval, bootstrap_speedup
from specdec.measure.profiling import plain_read_ms
from specdec.measure.quiet import Conditions, Watch
from specdec.measure.rivals import Reference
from specdec.measure.worth import Sample, figures
from specdec.metrics import StepMetrics, StepRecord, bandwidth_share
from specdec.prompts.sets import Prompt, PromptEncoder, PromptSet, Skipped
from specdec.runs.log import RunLog

OURS, BASE = "speculative", "autoregressive"
WARM_UP_TOKENS = 8
# Margins in logits that rounding errors can reverse: a few units in the last place of logits of order ten, amplified
# by some dozens of layers. A text that differs at a wider margin has another cause: a bug, or a lossy rule.
NEAR_TIE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


@dataclass(frozen=True)
class Trial:
    """One turn of one prompt in one repeat.

    Args:
        prompt: the prompt.
        place: index of the prompt in its set.
        turn: index of the turn in the conversation.
        repeat: index of the repeat, counted on over the seeds.
        batch: index of the batch. Rows of a batch run together, so batches are the unit of the bootstrap.
        ids: token ids of the encoded prompt, earlier turns included.
        texts: new token ids by method.
        seconds: time by method; the rows of a batch get equal shares of its time.
        emitted, steps: tokens and steps of the drafter's method.
        conditions: state of the machine by method.
        seed: seed of the sampling.
    """

    prompt: Prompt
    place: int
    turn: int
    repeat: int
    batch: int
    ids: list[int]
    texts: dict[str, list[int]]
    seconds: dict[str, float]
    emitted: int = 0
    steps: int = 0
    conditions: dict[str, Conditions] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """Results of all methods on one batch and turn, run one after the other.

    Args:
        texts: new token ids of each row, by method.
        seconds: time of the batch, by method.
        conditions: state of the machine meanwhile, by method.
        steps: step records of the drafter's method.
    """

    texts: dict[str, list[list[int]]]
    seconds: dict[str, float]
    conditions: dict[str, Conditions]
    steps: list[StepRecord]

    @property
    def disturbance(self) -> float:
        """Largest share of the machine that other processes took from one of the methods; 0 if none was disturbed."""
        return max(c.others + c.stolen if c.disturbed else 0.0 for c in self.conditions.values())


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

    def run(self, log: RunLog, on_trial: Callable[[Trial], None] = lambda _: None) -> dict[str, Any]:
        """Run everything and return the summary.

        Args:
            log: takes step records and texts as soon as they are made.
            on_trial: called after each trial.
        """
        self._warm_up()
        trials: list[Trial] = []
        steps: list[StepRecord] = []
        ended = list(self.skipped)
        spare = Spare(round(self.repeat_disturbed * self.turns / self.batch_size))
        origins: list[Trial] = []  # origins[i]: the trial that steps[i] belongs to
        for repeat in range(self.repeats * len(self.seeds)):
            for number, batch in enumerate(self._batches()):
                for new_trials, new_steps in self._conversation(batch, number, repeat, log, ended, spare):
                    trials += new_trials
                    steps += new_steps
                    origins += [new_trials[step.row] for step in new_steps]
                    for trial in new_trials:
                        on_trial(trial)
        whole = self._summary(trials, steps, origins)
        return {**whole, "quiet": quietness(trials, spare.used), "skipped": [vars(one) for one in ended]}

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

    def _summary(
        self, trials: Sequence[Trial], steps: Sequence[StepRecord], origins: Sequence[Trial]
    ) -> dict[str, Any]:
        """Return the summary. `origins[i]` is the trial that `steps[i]` belongs to."""

        def by(part: Callable[[Trial], str]) -> dict[str, Any]:
            found = {}
            for name in dict.fromkeys(map(part, trials)):
                of_name = [step for step, origin in zip(steps, origins, strict=True) if part(origin) == name]
                found[name] = self._figures([t for t in trials if part(t) == name], of_name)
            return found

        by_category = by(lambda trial: trial.prompt.category)
        by_seed = by(lambda trial: str(trial.seed)) if len(self.seeds) > 1 else {}
        whole, peak_memory_mb = self._figures(trials, steps), self._peak_memory_mb()
        share = bandwidth_share(plain_read_ms(self.decoder.target), whole["phase_ms"]["verify"])
        parts = {"by_category": by_category, "by_seed": by_seed}
        return {**whole, "bandwidth_share": share, **parts, "peak_memory_mb": peak_memory_mb}

    def _figures(self, trials: Sequence[Trial], steps: Sequence[StepRecord]) -> dict[str, Any]:
        speedup, interval = speedup_over(BASE, OURS, trials)
        worth = figures(batch_samples(trials), len({trial.seed for trial in trials}))
        references = [
            {
                "name": method.name,
                "tokens_per_second": tokens_per_second(trials, method.name),
                "speedup": speedup_over(method.name, OURS, trials)[0],
                "speedup_ci95": speedup_over(method.name, OURS, trials)[1],
                "identical": self._identical_to(method.name, trials),
            }
            for method in self.references
        ]
        return {
            "prompts": len({trial.place for trial in trials}),
            **StepMetrics.of(steps).as_dict(),
            "new_tokens": sum(len(trial.texts[OURS]) for trial in trials),
            "tokens_per_second": tokens_per_second(trials, OURS),
            "autoregressive_tokens_per_second": tokens_per_second(trials, BASE),
            "speedup": speedup,
            "speedup_ci95": interval,
            **{f"{name}_ci95": worth[f"{name}_ci95"] for name in ("tokens_per_step", "tokens_per_second")},
            "reference": references[0] if references else None,
            "other_references": references[1:],
            "divergence": self._divergence(trials),
            "strays": self._strays(trials),
        }

    def _identical_to(self, other: str, trials: Sequence[Trial]) -> int | None:
        return sum(t.texts[OURS] == t.texts[other] for t in trials) if self.decoder.sampling.greedy else None

    def _divergence(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """Compare greedy texts with those of the baseline; None if texts are sampled.

        In lower precision they may differ after a position at which the target's two best tokens are nearly tied;
        `margin` is the difference of their logits there.
        """
        if not self.decoder.sampling.greedy:
            return None
        differing: dict[tuple[int, int], dict[str, Any]] = {}
        for t in trials:
            if t.texts[OURS] != t.texts[BASE]:
                differing.setdefault((t.place, t.turn), self._parting(t))
        total = len({(t.place, t.turn) for t in trials})
        return {"identical": total - len(differing), "total": total, "prompts": list(differing.values())}

    def _parting(self, trial: Trial) -> dict[str, Any]:
        ours, base = trial.texts[OURS], trial.texts[BASE]
        position = next(
            (i for i, (a, b) in enumerate(zip(ours, base, strict=False)) if a != b), min(len(ours), len(base))
        )
        before = [*trial.ids, *base[:position]]
        target = self.decoder.target
        logits = target.prefill(target.new_cache(1, len(before)), [before]).logits[:, 0]
        sampling = self.decoder.sampling.bound(target.model, [trial.ids], self.decoder.stop)
        best = sampling.scores(logits, [before])[0].topk(2).values
        return {
            "prompt": trial.prompt.id,
            "turn": trial.turn,
            "position": position,
            "tokens": [ours[position : position + 1], base[position : position + 1]],
            "margin": float(best[0] - best[1]),
            "explained": float(best[0] - best[1]) <= NEAR_TIE[target.dtype],
        }

    def _strays(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """Return how far the texts of a lossy rule are from the target; None for a lossless rule.

        equal_tokens                  share of tokens equal to the greedy baseline's token at the same position; None
                                      if texts are sampled
        mean_logprob                  mean log-probability of our texts under the plain target, nats per token
        autoregressive_mean_logprob   the same for the baseline's texts
        """
        if self.decoder.rule.lossless:
            return None
        pairs = [(t.texts[OURS], t.texts[BASE]) for t in trials]
        same = sum(a == b for ours, base in pairs for a, b in zip(ours, base, strict=False))
        return {
            "equal_tokens": same / sum(len(ours) for ours, _ in pairs) if self.decoder.sampling.greedy else None,
            "mean_logprob": self._mean_logprob(trials, OURS),
            "autoregressive_mean_logprob": self._mean_logprob(trials, BASE),
        }

    def _mean_logprob(self, trials: Sequence[Trial], method: str) -> float:
        """Return the mean log-probability of the method's texts under the plain target, at temperature 1, untruncated.

        Nats per token.
        """
        total, count = 0.0, 0
        with torch.inference_mode(), self.decoder.target.stock() as model:
            for t in trials:
                ids = torch.tensor([[*t.ids, *t.texts[method]]], device=model.device)
                new = len(t.texts[method])
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=new + 1).logits[0, :-1].float()
                total += float(logits.log_softmax(-1).gather(1, ids[0, -new:, None]).sum())
                count += new
        return total / count

    def _peak_memory_mb(self) -> float:
        device = self.decoder.target.device
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


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


def quietness(trials: Sequence[Trial], repeated: int) -> dict[str, Any]:
    """Return how disturbed the machine was, and the energy of each method.

    Returns:
        `rounds`, the number of rounds; `disturbed` and `repeated`, how many of them were; `worst`, the reason of the
        largest disturbance; `joules_per_token` by method (None if the machine has no energy counter).
    """
    rounds = {(t.repeat, t.batch, t.turn): t.conditions for t in trials}
    reasons = [(c.others + c.stolen, c.disturbed) for of_round in rounds.values() for c in of_round.values()]
    joules: dict[str, float | None] = {}
    for name in dict.fromkeys(name for of_round in rounds.values() for name in of_round):
        spent = [of_round[name].joules for of_round in rounds.values()]
        known = [value for value in spent if value is not None]
        tokens = sum(len(t.texts[name]) for t in trials)
        joules[name] = sum(known) / tokens if len(known) == len(spent) and tokens else None
    return {
        "rounds": len(rounds),
        "disturbed": sum(any(c.disturbed for c in of_round.values()) for of_round in rounds.values()),
        "repeated": repeated,
        "worst": max(((share, line) for share, line in reasons if line), default=(0.0, None))[1],
        "joules_per_token": joules,
    }


def tokens_per_second(trials: Sequence[Trial], method: str) -> float:
    return sum(len(t.texts[method]) for t in trials) / sum(t.seconds[method] for t in trials)


def batch_samples(trials: Sequence[Trial]) -> list[Sample]:
    """Return the sums of each batch's trials under each seed: all batches of one seed, then those of the next."""
    sums: dict[tuple[int, int], Sample] = {}
    for t in trials:
        ours, base = ((len(t.texts[name]), t.seconds[name]) for name in (OURS, BASE))
        key, new = (t.seed, t.batch), (t.emitted, t.steps, *ours, *base)
        sums[key] = Sample(*(a + b for a, b in zip(sums.get(key, [0.0] * 6), new, strict=True)))
    return list(sums.values())


def speedup_over(other: str, method: str, trials: Sequence[Trial]) -> tuple[float, Interval | None]:
    """Return tokens/s of `method` / tokens/s of `other` on the same prompts, with its 95 % interval."""
    sums: dict[tuple[int, int], list[float]] = {}
    for t in trials:
        key = (t.seed, t.batch)
        new = [len(t.texts[method]), t.seconds[method], len(t.texts[other]), t.seconds[other]]
        sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * 4), new, strict=True)]
    columns = np.array(list(sums.values())).T.reshape(4, len({t.seed for t in trials}), -1)
    return bootstrap_speedup(*columns)


def describe(benchmark: Benchmark, names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the head of a summary: what was run, and on what. Call it after `Benchmark.check`."""
    decoder, target, size = benchmark.decoder, benchmark.decoder.target, traits_of(benchmark.decoder.drafter).size
    return {
        **names,
        "acceptance": decoder.rule.name,
        "lossless": decoder.rule.lossless,
        "device": str(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "kernel": target.kernel.name,
        "threads": torch.get_num_threads(),
        "temperature": decoder.sampling.temperature,
        "batch_size": benchmark.batch_size,
        "max_new_tokens": decoder.stop.max_new_tokens,
        "repeats": benchmark.repeats,
        "seeds": list(benchmark.seeds),
        "parameters_added": size.parameters,
        "training_tokens": size.training_tokens,
    }
