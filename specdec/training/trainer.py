"""One trainer for every trainable drafter: a recipe brings the module and the loss, this brings everything else.

Knows tensors, texts and an `Accelerator`; no drafter, no verifier, no prompts. What is measured through the real
decoding path comes in as a callable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn

from specdec.errors import InputError
from specdec.protocols import Drafter
from specdec.runlog import TrainLog
from specdec.target import TargetModel
from specdec.training.batches import Order, deal, make_batch, move
from specdec.training.checkpoints import Checkpoints
from specdec.training.recipe import Recipe, TrainBatch
from specdec.training.store import Origin, Text, TextStore
from specdec.training.throughput import counted, product_rate

Measure = Callable[[Drafter], Mapping[str, float]]
LOSS, TOKENS = "loss", "tokens"
SHOWN = (LOSS, "validation/loss", "tokens_per_step")


@dataclass(frozen=True)
class Schedule:
    """How training goes. Texts are counted, not tokens.

    epochs: passes over the training split; batch_size: texts in a step, over all processes; accumulation: micro-batches
    a step is made of; learning_rate rises over the first `warmup` (a share of all steps) and falls along a cosine to
    `final` of itself; clip: largest gradient norm, 0 for none; longest: tokens of a text that are used.

    Raises:
        InputError: a number out of range.
    """

    epochs: float = 3.0
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.05
    final: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    longest: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("epochs", self.epochs > 0, "a number > 0"),
            ("batch_size", self.batch_size >= 1, "an integer >= 1"),
            ("accumulation", self.accumulation >= 1, "an integer >= 1"),
            ("learning_rate", self.learning_rate > 0, "a number > 0"),
            ("warmup", 0 <= self.warmup < 1, "a share in [0, 1)"),
            ("final", 0 <= self.final <= 1, "a share in [0, 1]"),
            ("clip", self.clip >= 0, "a number >= 0"),
            ("longest", self.longest >= 2, "an integer >= 2"),
        ):
            if not ok:
                raise InputError(f"training.{name}", expected=expected, got=getattr(self, name), fix="change it")

    def steps(self, texts: int) -> int:
        return max(math.ceil(self.epochs * texts / self.batch_size), 1)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: a function of its number, so that there is nothing to restore."""
        warm = self.warmup * steps
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        share = (step - warm) / max(steps - warm, 1)
        return self.learning_rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class Reports:
    """How often (in steps) figures are written, the validation texts and the decoding path are looked at, and
    checkpoints are made; `validation_texts`: how many."""

    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    validation_texts: int = 64


class LossModule(nn.Module):
    """The trained module with its loss as forward, so that DDP and FSDP see one forward and one backward. Plain
    containers go in and out, which they know how to move and to cast."""

    def __init__(self, recipe: Recipe, module: nn.Module, target: TargetModel) -> None:
        super().__init__()
        self.module = module
        self._recipe, self._target = recipe, target

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The loss's total, which carries the gradient; and all sums, the loss's under LOSS."""
        loss = self._recipe.loss(self.module, self._target, TrainBatch(**batch))
        sums = {LOSS: loss.loss, **loss.metrics}
        return loss.loss.total, {name: (s.total.detach(), s.weight.detach()) for name, s in sums.items()}


class Trainer:
    """Trains a recipe's module on a folder of its target's text.

    measure: what the module is worth as a drafter (tokens per step), through the decoding path that serves.

    Raises:
        InputError: text of another target or chat template, without the features the recipe reads, or too little of
            it; a batch that cannot be dealt out evenly.
    """

    def __init__(
        self,
        recipe: Recipe,
        target: TargetModel,
        store: TextStore,
        schedule: Schedule,
        reports: Reports,
        accelerator: Accelerator,
        measure: Measure,
    ) -> None:
        self.recipe, self.target, self.store = recipe, target, store
        self.schedule, self.reports, self.measure, self.accelerator = schedule, reports, measure, accelerator
        self.training = [text for text in store.texts if not text.validation]
        self.validation = validation_texts(store)
        self._check()
        self.steps = schedule.steps(len(self.training))
        self._order = Order(self.training, schedule.batch_size, schedule.seed)
        self._frequencies = store.frequencies()
        set_seed(schedule.seed)
        module = recipe.build(target, self._frequencies)
        set_seed(schedule.seed, device_specific=True)  # the same module everywhere, but draws of one's own
        groups = parameter_groups(module, recipe.lr_scale)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=schedule.weight_decay)
        self._model, self._optimizer = accelerator.prepare(LossModule(recipe, module, target), optimizer)
        self._sharded = accelerator.distributed_type is DistributedType.FSDP
        self._flops_per_token: float | None = None
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
        self._product_rate = product_rate(accelerator.device, mixed)

    def run(
        self, checkpoints: Checkpoints, log: TrainLog | None, on_step: Callable[[str], None] = lambda words: None
    ) -> dict[str, Any]:
        """Train from the latest checkpoint on; log: None in all processes but the main one. Returns the last
        figures."""
        begun = checkpoints.latest or 0
        latest: dict[str, Any] = {}

        def report(step: int, figures: Mapping[str, Any]) -> None:
            latest.update(figures)
            if log is not None:
                log.report(step, figures)

        if begun:
            checkpoints.load(begun)
        else:
            report(0, self.evaluate())
        window = Window()
        for step in range(begun, self.steps):
            window.add(*self._step(step))
            done, last = step + 1, step + 1 == self.steps
            if last or done % self.reports.log_every == 0:
                report(done, self._figures(window, step))
                window = Window()
            if last or done % self.reports.evaluate_every == 0:
                report(done, self.evaluate())
                window.restart()
            if last or done % self.reports.checkpoint_every == 0:
                checkpoints.save(done)
                window.restart()
            on_step("  ".join(f"{name} {latest[name]:.3f}" for name in SHOWN if name in latest))
        return latest

    def evaluate(self) -> dict[str, float]:
        """Loss and metrics on the first validation texts, and what the module is worth as a drafter. Draws no random
        number that training would have drawn."""
        size = max(self.schedule.batch_size // self._parts, 1)
        texts = self.validation[: self.reports.validation_texts]
        sums: Sums = {}
        self._model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            # every process all of it: FSDP needs them in step, and nobody would be waiting less
            for first in range(0, len(texts), size):
                add(sums, self._model(self._batch(texts[first : first + size], 0.0))[1])
            figures = {f"validation/{name}": value for name, value in means(sums).items()}
            plain = self.plain_module()
            if plain is not None:
                plain.eval()
                figures |= self.measure(self.recipe.drafter(plain, self.target))
        self._model.train()
        return figures

    def plain_module(self) -> nn.Module | None:
        """The trained module as the recipe built it; only the main process gets one."""
        if not self._sharded:
            module = self.accelerator.unwrap_model(self._model).module
            return module if self.accelerator.is_main_process else None
        state = self.accelerator.get_state_dict(self._model)
        if not self.accelerator.is_main_process:
            return None
        module = self.recipe.build(self.target, self._frequencies)
        module.load_state_dict({name.removeprefix("module."): weight for name, weight in state.items()})
        return module

    def _step(self, step: int) -> tuple[Sums, int, float]:
        """One optimizer step. Returns the sums over all processes, the tokens read, and the gradient's norm."""
        mine = deal(self._order[step], self._parts)[self.accelerator.process_index :: self.accelerator.num_processes]
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr_scale"] * self.schedule.rate(step, self.steps)
        sums: Sums = {}
        for number, texts in enumerate(mine, 1):
            batch = self._batch(texts, step / self.steps)
            together = nullcontext() if number == len(mine) else self.accelerator.no_sync(self._model)
            with together:
                add(sums, {**self._backward(batch), TOKENS: (batch["valid"].sum(), torch.zeros(()))})
        sums = self._over_processes(sums)
        weight = float(sums[LOSS][1])
        if not math.isfinite(float(sums[LOSS][0])):
            raise InputError(
                "training", expected="a finite loss", got=f"{float(sums[LOSS][0])} at step {step + 1}",
                fix="lower training.learning_rate, or resume from a checkpoint with another folder's data",
            )  # fmt: skip
        # DDP and FSDP have averaged over processes what is to be one sum over everything
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.accelerator.num_processes / (weight or 1.0))
        norm = self.accelerator.clip_grad_norm_(self._model.parameters(), self.schedule.clip or math.inf)
        self._optimizer.step()
        self._optimizer.zero_grad()
        tokens = int(sums.pop(TOKENS)[0])
        return sums, tokens, float(norm)

    def _backward(self, batch: dict[str, Any]) -> Sums:
        sums: Sums = {}

        def work() -> None:
            nonlocal sums
            total, sums = self._model(batch)
            self.accelerator.backward(total)

        if self._flops_per_token is None and not self._sharded:
            self._flops_per_token = counted(work) / int(batch["valid"].sum())
        else:
            work()
        return sums

    def _figures(self, window: Window, step: int) -> dict[str, Any]:
        rate = window.tokens / window.seconds
        figures = {
            **means(window.sums), "learning_rate": self.schedule.rate(step, self.steps), "grad_norm": window.norm,
            "tokens_per_second": rate,
        }  # fmt: skip
        if self._flops_per_token is not None:
            machines = self.accelerator.num_processes if self.accelerator.device.type == "cuda" else 1
            figures["product_share"] = rate * self._flops_per_token / (self._product_rate * machines)
        return figures

    def _batch(self, texts: Sequence[Text], progress: float) -> dict[str, Any]:
        batch = make_batch(self.store, texts, self.recipe.features, self.schedule.longest, progress)
        return vars(move(batch, self.accelerator.device)).copy()

    @property
    def _parts(self) -> int:
        """Micro-batches of a step, over all processes."""
        return self.accelerator.num_processes * self.schedule.accumulation

    def _over_processes(self, sums: Sums) -> Sums:
        table = torch.stack(
            [torch.stack([t.double(), w.double()]).to(self.accelerator.device) for t, w in sums.values()]
        )
        table = self.accelerator.reduce(table, "sum").cpu()
        return {name: (row[0], row[1]) for name, row in zip(sums, table, strict=True)}

    def _check(self) -> None:
        self.store.origin.require_same(Origin.of(self.target), self.store.folder)
        if not self.training or not self.validation:
            raise InputError(
                str(self.store.folder), expected="texts to train on and texts to validate with",
                got=f"{len(self.training)} and {len(self.validation)}", fix="add text with experiments.self_distill",
            )  # fmt: skip
        if self.schedule.batch_size % self._parts:
            raise InputError(
                "training.batch_size",
                expected=f"a multiple of {self._parts} (processes x training.accumulation)",
                got=self.schedule.batch_size,
                fix="change it",
            )
        if self.recipe.live and self.recipe.features:
            raise InputError(
                "recipe.features", expected="none of a live recipe", got=self.recipe.features, fix="use []"
            )
        for name in self.recipe.features:
            for text in self.store.texts:
                self.store.require(text, name)


Sums = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Window:
    """Sums since the last report."""

    sums: Sums = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    norm: float = 0.0
    _begun: float = field(default_factory=time.perf_counter)

    def add(self, sums: Sums, tokens: int, norm: float) -> None:
        add(self.sums, sums)
        now = time.perf_counter()
        self.tokens, self.seconds, self.norm = self.tokens + tokens, self.seconds + now - self._begun, norm
        self._begun = now

    def restart(self) -> None:
        """What happened since the last step was not training."""
        self._begun = time.perf_counter()


def add(into: Sums, sums: Sums) -> None:
    for name, (total, weight) in sums.items():
        before = into.get(name, (0.0, 0.0))
        into[name] = (before[0] + total, before[1] + weight)


def means(sums: Sums) -> dict[str, float]:
    return {name: float(total) / (float(weight) or 1.0) for name, (total, weight) in sums.items()}


def validation_texts(store: TextStore) -> list[Text]:
    """The validation split, in the order of the prompts' hashes."""
    return sorted((text for text in store.texts if text.validation), key=lambda text: (text.key, text.sample))


def parameter_groups(module: nn.Module, lr_scale: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trained parameters, by their factor on the learning rate.

    Raises:
        InputError: a factor for a part the module does not have, or nothing to train.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    parts = {name.partition(".")[0] for name, _ in module.named_parameters()}
    if unknown := sorted(set(lr_scale) - parts):
        raise InputError(
            "recipe.lr_scale", expected=f"parts of the module ({', '.join(sorted(parts))})", got=unknown, fix="check it"
        )
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(lr_scale.get(name.partition(".")[0], 1.0), []).append(parameter)
    if not groups:
        raise InputError("recipe", expected="a module with parameters to train", got="none", fix="mend its build()")
    return [{"params": parameters, "lr_scale": scale, "lr": 0.0} for scale, parameters in groups.items()]
