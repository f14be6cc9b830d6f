"""One trainer for every trainable drafter: a recipe provides the module and the loss, this module everything else.

It handles tensors, texts and an `Accelerator`, but no drafters, verifiers or prompts: measurements through the real
decoding path are passed in as a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn

from specdec.decoding.protocols import Drafter
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.notes import note
from specdec.runs.log import TrainLog
from specdec.training.batches import Ahead, Order, deal, make_batch, move
from specdec.training.checkpoints import Checkpoints
from specdec.training.enough import require_enough
from specdec.training.recipe import Recipe, TrainBatch
from specdec.training.schedule import Reports, Schedule
from specdec.training.sums import Sums, Window, add, means
from specdec.training.text.store import TextStore
from specdec.training.text.texts import Text
from specdec.training.throughput import counted, product_rate

Measure = Callable[[Drafter], Mapping[str, float]]
LOSS, TOKENS = "loss", "tokens"
SHOWN = (LOSS, "validation/loss", "tokens_per_step")


class LossModule(nn.Module):
    """The trained module, with its loss as forward, so that DDP and FSDP see one forward and one backward.

    Inputs and outputs are dicts and tuples of tensors, which DDP and FSDP can move and cast.
    """

    def __init__(self, recipe: Recipe, module: nn.Module, target: TargetModel) -> None:
        super().__init__()
        self.module = module
        self._recipe, self._target = recipe, target

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return the loss's total, with gradient, and all sums as (total, weight) by name; the loss is `LOSS`."""
        loss = self._recipe.loss(self.module, self._target, TrainBatch(**batch))
        sums = {LOSS: loss.loss, **loss.metrics}
        return loss.loss.total, {name: (s.total.detach(), s.weight.detach()) for name, s in sums.items()}


class Trainer:
    """Train a recipe's module on a folder of its target's text.

    Args:
        recipe: module and loss.
        target: the target.
        store: the text folder.
        schedule: epochs, batch size, learning rate and so on.
        reports: how often to report, evaluate and save.
        accelerator: processes, precision and device.
        measure: maps a drafter to figures such as tokens per step, through the decoding path that is used in serving.

    Raises:
        InputError: the text is of another target or chat template, lacks the features that the recipe reads, or is too
            little; or the batch size is not divisible by processes x accumulation.
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
        self.training, self.validation = store.training, store.validation
        tell = note if accelerator.is_main_process else lambda words: None
        require_enough(store, recipe, target, schedule, tell)
        self._require_shares()
        self.steps = schedule.steps(len(self.training))
        self._order = Order(self.training, schedule.batch_size, schedule.seed)
        self._batches = Ahead(self._micro_batch, self.steps * schedule.accumulation)
        self._frequencies = store.frequencies()
        set_seed(schedule.seed)
        module = recipe.build(target, self._frequencies)
        set_seed(schedule.seed, device_specific=True)  # the module is the same in all processes, later draws are not
        groups = parameter_groups(module, recipe.lr_scale)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=schedule.weight_decay)
        self._model, self._optimizer = accelerator.prepare(LossModule(recipe, module, target), optimizer)
        self._sharded = accelerator.distributed_type is DistributedType.FSDP
        self._flops_per_token: float | None = None
        self._saved: int | None = None  # step of the newest checkpoint
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
        self._product_rate = product_rate(accelerator.device, mixed)

    def run(
        self,
        checkpoints: Checkpoints,
        log: TrainLog | None,
        on_step: Callable[[str], None] = lambda words: None,
        stop: Callable[[], object] = lambda: None,
    ) -> dict[str, Any]:
        """Run the training, from the latest checkpoint if there is one.

        Args:
            checkpoints: loads and saves the state of the run.
            log: takes the figures; None in all processes except the main one.
            on_step: called after each step with a short progress text.
            stop: called after each step; the run ends if it returns anything but None in any process.

        Returns:
            The last figures.

        Raises:
            InputError: the loss or the gradient is not finite, or the texts hold no tokens to learn.
            KeyboardInterrupt: `stop` ended the run, possibly after the last step. A checkpoint of that step was saved.
        """
        begun = checkpoints.latest or 0
        latest: dict[str, Any] = {}

        def report(step: int, figures: Mapping[str, Any]) -> None:
            latest.update(figures)
            if log is not None:
                log.report(step, figures)

        if begun:
            state = checkpoints.load(begun)
            window, latest, learnt = Window.of(state["window"]), state["latest"], state["learnt"]
        else:
            window, learnt = Window(), 0.0
            report(0, self.evaluate())
        self._saved = begun or None
        if begun < self.steps and not self._sharded:
            self._flops_per_token = self._counted(self._micro_batch(begun * self.schedule.accumulation))
        window.restart()
        for step in range(begun, self.steps):
            sums, tokens, norm = self._step(step)
            window.add(sums, tokens, norm)
            learnt += float(sums[LOSS][1])
            done, last = step + 1, step + 1 == self.steps
            if not learnt and (last or done * self.schedule.batch_size >= len(self.training)):
                raise InputError(
                    "training", expected="tokens to learn from", got=f"none in the texts of {done:,} steps",
                    fix="raise training.longest, or add longer answers with experiments.self_distill",
                )  # fmt: skip
            if last or done % self.reports.log_every == 0:
                report(done, self._figures(window, step))
                window = Window()
            if last or done % self.reports.evaluate_every == 0:
                report(done, self.evaluate())
                window.restart()
            stops = self._anywhere(stop() is not None)
            if last or stops or done % self.reports.checkpoint_every == 0:
                checkpoints.save(done, {"window": window.state(), "latest": latest, "learnt": learnt})
                self._saved = done
                window.restart()
            on_step("  ".join(f"{name} {latest[name]:.3f}" for name in SHOWN if name in latest))
            if stops:
                raise KeyboardInterrupt
        return latest

    @property
    def tokens(self) -> int:
        """Number of answer tokens that a whole run reads; every reading of a text counts, up to `schedule.longest`."""
        epochs, rest = divmod(self.steps * self.schedule.batch_size, len(self.training))
        longest = self.schedule.longest
        whole, part = (
            sum(text.answer_tokens_within(longest) for text in texts)
            for texts in (self.training, self._order.epoch(epochs)[:rest])
        )
        return epochs * whole + part

    def evaluate(self) -> dict[str, float]:
        """Return loss and metrics on the first validation texts, and the figures of the module as a drafter.

        The state of the random generators is restored afterwards, so that evaluating does not change the training.
        """
        size = max(self.schedule.batch_size // self._parts, 1)
        texts = self.validation[: self.reports.validation_texts]
        sums: Sums = {}
        self._model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            # every process evaluates all texts: FSDP needs the processes in step, and splitting would save no time
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
        """Return the trained module without its DDP or FSDP wrapper in the main process, None in the others."""
        if not self._sharded:
            module = self.accelerator.unwrap_model(self._model).module
            return module if self.accelerator.is_main_process else None
        state = self.accelerator.get_state_dict(self._model)
        if not self.accelerator.is_main_process:
            return None
        module = self.recipe.build(self.target, self._frequencies)
        module.load_state_dict({name.removeprefix("module."): weight for name, weight in state.items()})
        return module

    def gradients(self, step: int) -> tuple[Sums, int]:
        """Compute a step's gradients, of the mean loss over the global batch, and leave them in the parameters.

        The gradients do not depend on how the global batch is split into micro-batches and processes.

        Returns:
            The sums over all processes, and the number of tokens read.

        Raises:
            InputError: the loss is not finite; the message names the last good checkpoint.
        """
        sums: Sums = {}
        for number in range(self.schedule.accumulation):
            batch = self._batches(step * self.schedule.accumulation + number)
            last = number + 1 == self.schedule.accumulation
            with nullcontext() if last else self.accelerator.no_sync(self._model):
                read = batch["valid"].sum()
                add(sums, {**self._backward(batch), TOKENS: (read, torch.zeros_like(read))})
        sums = self._over_processes(sums)
        loss, weight = (float(part) for part in sums[LOSS])
        if not math.isfinite(loss):
            raise self._diverged("loss", loss, step)
        for parameter in self._model.parameters():
            if parameter.grad is not None:  # DDP and FSDP average over processes; the sum is needed
                parameter.grad.mul_(self.accelerator.num_processes / (weight or 1.0))
        return sums, int(sums.pop(TOKENS)[0])

    def _step(self, step: int) -> tuple[Sums, int, float]:
        """Run one optimizer step. Return the sums over all processes, the tokens read, and the gradient's norm."""
        sums, tokens = self.gradients(step)
        norm = self.accelerator.clip_grad_norm_(self._model.parameters(), self.schedule.clip or math.inf)
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # in fp16 the scaler skips such steps
            raise self._diverged("gradient", float(norm), step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr_scale"] * self.schedule.rate(step, self.steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return sums, tokens, float(norm)

    def _backward(self, batch: dict[str, Any]) -> Sums:
        total, sums = self._model(batch)
        self.accelerator.backward(total)
        return sums

    def _counted(self, batch: dict[str, Any]) -> float:
        """Return operations per token of a batch's forward and backward.

        The counter decomposes operators, which changes rounding. Therefore it runs on a separate pass that keeps no
        gradients and restores the random state.
        """
        model = self.accelerator.unwrap_model(self._model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def work() -> None:
            torch.autograd.grad(model(batch)[0], trained, allow_unused=True)

        with torch.random.fork_rng():
            return counted(work) / int(batch["valid"].sum())

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

    def _micro_batch(self, number: int) -> dict[str, Any]:
        """Return micro-batch `number` of this process; micro-batches are counted over all steps."""
        step, part = divmod(number, self.schedule.accumulation)
        mine = deal(self._order[step], self._parts)[self.accelerator.process_index :: self.accelerator.num_processes]
        return self._batch(mine[part], step / self.steps)

    def _batch(self, texts: Sequence[Text], progress: float) -> dict[str, Any]:
        batch = make_batch(self.store, texts, self.recipe.features, self.schedule.longest, progress)
        return vars(move(batch, self.accelerator.device)).copy()

    @property
    def _parts(self) -> int:
        """Number of micro-batches of a step, over all processes."""
        return self.accelerator.num_processes * self.schedule.accumulation

    def _anywhere(self, here: bool) -> bool:
        """Return whether `here` is True in any process."""
        if self.accelerator.num_processes == 1:
            return here
        count = torch.tensor(int(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(count, "sum"))

    def _over_processes(self, sums: Sums) -> Sums:
        table = torch.stack(
            [torch.stack([t.double(), w.double()]).to(self.accelerator.device) for t, w in sums.values()]
        )
        table = self.accelerator.reduce(table, "sum").cpu()
        return {name: (row[0], row[1]) for name, row in zip(sums, table, strict=True)}

    def _require_shares(self) -> None:
        if self.schedule.batch_size % self._parts:
            raise InputError(
                "training.batch_size",
                expected=f"a multiple of {self._parts} (processes x training.accumulation)",
                got=self.schedule.batch_size,
                fix="change it",
            )

    def _diverged(self, what: str, value: float, step: int) -> InputError:
        """Return the error for a loss or gradient that is not finite; it is raised before the weights change.

        Args:
            what: name used in the error message.
            value: the value that is not finite.
            step: index of the step.
        """
        kept = (
            "no checkpoint was made yet" if self._saved is None else f"step-{self._saved} is the last good checkpoint"
        )
        rate = f"training.learning_rate={self.schedule.learning_rate / 2:g}"
        return InputError(
            "training", expected=f"a finite {what}", got=f"{value} at step {step + 1}",
            fix=f"{kept}; begin again with {rate} and another folder=...",
        )  # fmt: skip


def parameter_groups(module: nn.Module, lr_scale: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the trained parameters as AdamW groups, one for each factor on the learning rate.

    Raises:
        InputError: `lr_scale` names a part that the module does not have, or no parameter is trained.
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
