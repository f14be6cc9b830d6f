"""Measure what a target costs on one card: bandwidth, decode, verify, the step around them, and what drafting gains.

Every row has a goal for GPUs, a share of what the same card measured in the same call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from specdec.decoding.clock import PhaseClock
from specdec.decoding.generate import Generation, autoregressive, speculative
from specdec.decoding.protocols import AcceptanceRule, Drafter, Verifier
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.measure.profiling import Footprint, Point, profile
from specdec.model.attention.context import AttentionContext
from specdec.model.attention.registry import choose_kernel
from specdec.model.attention.tree_attention import tree_attention
from specdec.model.cache import TreeCache
from specdec.model.runtime.graphs import CudaGraphs
from specdec.model.target import TargetModel

GREEDY = SamplingParams()
VERIFIED = (1, 8, 64)  # nodes
MOST_VERIFY = {8: 1.05, 64: 1.15}  # of decode
CALLS = 32  # of a kernel in one graph
LEAST_DECODE = 0.7  # of the bandwidth
MOST_GLUE = 0.3  # ms a step
LEAST_OF_MODEL = 0.9  # of what acceptance and costs predict
FLOORS = {2.31: 1.8, 4.34: 2.3, 5.71: 3.0}  # τ of Medusa, EAGLE-2 and EAGLE-3: speedup over plain decoding


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        name: what was measured.
        value: the number.
        unit: its unit, "" for a ratio.
        goal: bound on a GPU, or None.
        least: whether the goal is a lower bound.
    """

    name: str
    value: float
    unit: str = ""
    goal: float | None = None
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.least else self.value <= self.goal


def copy_rate(device: torch.device, mib: int, rounds: int) -> Row:
    """Return the best rate of a copy in memory, reads and writes counted, in GB/s."""
    source = torch.ones(mib * 2**18, dtype=torch.float32, device=device)
    best = min(_ms(device, source.clone) for _ in range(rounds))
    return Row("copy bandwidth", 2 * source.nbytes / best / 1e6, "GB/s")


def costs(target: TargetModel, gb_per_second: float, prefix: int, rounds: int, mib: int) -> list[Row]:
    """Return what a forward costs behind `prefix` tokens.

    Args:
        target: the target.
        gb_per_second: copy bandwidth of its device.
        prefix: committed tokens.
        rounds: number of measurements, of which the median counts.
        mib: size of the buffer that is read, in MiB.
    """
    points = [Point(nodes, prefix, 1) for nodes in VERIFIED]
    measured = profile(target, points, rounds, buffer_mib=mib, matrix=256)
    decode, *verify = (statistics.median(measured.rounds_ms[point]) for point in points)
    limit = Footprint.of(target).work(points[0]).bytes / gb_per_second / 1e6
    rows = [
        Row(f"decode, {prefix} tokens before it", decode, "ms"),
        Row("decode, share of the bandwidth", limit / decode, "", LEAST_DECODE, True),
    ]
    for nodes, ms in zip(VERIFIED[1:], verify, strict=True):
        rows.append(Row(f"verify({nodes}) / decode", ms / decode, "", MOST_VERIFY[nodes]))
    return rows


def attention(target: TargetModel, names: Sequence[str], lengths: Sequence[int], rounds: int) -> list[Row]:
    """Return the time of one layer's attention over one node.

    Args:
        target: the target.
        names: kernels; the first is compared with the second.
        lengths: numbers of cached tokens.
        rounds: number of measurements, of which the median counts.
    """
    rows = []
    heads = target.model.config.get_text_config().num_attention_heads
    for length in lengths:
        times = []
        for name in names:
            cache = TreeCache(target.kv_shapes[:1], 1, length + 1, target.dtype, target.device)
            cache.advance([length])
            positions = cache.lengths[:, None]
            context = AttentionContext(
                choose_kernel(name, target.device), cache, cache.lengths, cache.host_lengths, positions, 1, None
            )
            query = torch.randn(1, heads, 1, target.kv_shapes[0][1], dtype=target.dtype, device=target.device)
            layer = torch.nn.Module()
            layer.layer_idx = 0  # type: ignore[assignment]
            new = [x[:, :, length : length + 1] for x in cache.layer(0)]
            call = _attending(layer, query, new, context)
            run, calls = _repeated(call, target.device)
            times.append(statistics.median(_ms(target.device, run) for _ in range(rounds)) / calls)
            rows.append(Row(f"{name}, 1 node, {length} tokens", times[-1], "ms"))
        if len(times) > 1:
            rows.append(Row(f"{names[0]} / {names[1]}, {length} tokens", times[0] / times[1], "", 1.1))
    return rows


def _attending(
    layer: torch.nn.Module, query: torch.Tensor, new: list[torch.Tensor], context: AttentionContext
) -> Callable[[], torch.Tensor]:
    return lambda: tree_attention(layer, query, new[0], new[1], None, tree=context)[0]


def _repeated(call: Callable[[], torch.Tensor], device: torch.device) -> tuple[Callable[[], object], int]:
    """Return a function that makes many calls in one captured graph, and their number: a launch from Python takes
    longer than the kernel. On a CPU it makes one call."""
    call()
    if device.type != "cuda":
        return call, 1
    return CudaGraphs()(lambda: tuple(call() for _ in range(CALLS)))[0], CALLS


def gains(
    verifier: Verifier, drafters: dict[float, Drafter], rule: AcceptanceRule, prompt: list[int], new: int
) -> list[Row]:
    """Return what drafting with a prescribed number of tokens per step gains, and the time around the forwards.

    Args:
        verifier: verifies trees of the target.
        drafters: by the tokens per step that they are prescribed.
        rule: the acceptance rule.
        prompt: token ids.
        new: tokens to generate.
    """
    target, stop = verifier.target, StopRule(new)

    def timed(run: Callable[[], Generation]) -> tuple[Generation, float]:
        run()  # captures, and libraries choose their kernels
        done = run()
        return done, (done.seconds - done.prefill_seconds) / max(len(done.texts[0]) - 1, 1)

    _, plain = timed(lambda: autoregressive([prompt], target, GREEDY, stop, [[0]]))
    rows = [
        Row("plain decoding", 1 / plain, "tokens/s"),
        Row("model.generate", 1 / _stock(target, prompt, new), "tokens/s"),
    ]
    for tokens, drafter in drafters.items():
        done, each = timed(_drafted(drafter, verifier, rule, prompt, stop))
        reached = sum(step.emitted for step in done.steps) / len(done.steps)
        ms = {phase: statistics.median(step.ms[phase] for step in done.steps) for phase in done.steps[0].ms}
        model = reached / ((ms["verify"] + ms["draft"]) / 1e3 / plain)
        name = f"τ {tokens:.2f}"
        rows += [
            Row(f"{name}: tokens per step", reached),
            Row(f"{name}: glue of a step", ms["accept"] + ms["commit"], "ms", MOST_GLUE),
            Row(f"{name}: speedup over plain decoding", plain / each, "", FLOORS.get(tokens), True),
            Row(f"{name}: share of τ / (verify + drafting)", plain / each / model, "", LEAST_OF_MODEL, True),
        ]
    return rows


def _drafted(
    drafter: Drafter, verifier: Verifier, rule: AcceptanceRule, prompt: list[int], stop: StopRule
) -> Callable[[], Generation]:
    return lambda: speculative([prompt], drafter, verifier, rule, GREEDY, stop, [[0]])


def _stock(target: TargetModel, prompt: list[int], new: int) -> float:
    """Return the seconds per token of `model.generate`."""
    ids = torch.tensor([prompt], device=target.device)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    with target.stock() as model, torch.inference_mode():
        model.generate(ids, max_new_tokens=2, **options)  # type: ignore[operator]
        begun = time.perf_counter()
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, **options)  # type: ignore[operator]
    return (time.perf_counter() - begun) / new


def _ms(device: torch.device, call: Callable[[], object]) -> float:
    clock = PhaseClock(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock.start()
    call()
    clock.lap("call")
    taken = clock.take()
    clock.finish()
    return taken["call"]
