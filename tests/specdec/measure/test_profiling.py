"""Counting of bytes and operations against independent counts, and the sweep over forwards."""

from __future__ import annotations

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from specdec.errors import InputError
from specdec.measure.profiling import (
    Ceilings,
    Footprint,
    Point,
    Profile,
    Work,
    figures,
    fitting,
    profile,
    read_weights,
    sweep,
)
from specdec.model.cache import cache_argument
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from tests.support.families import build

BASE = {"tokens": 1, "prefix": 16, "batch": 1}
ROTARY = 0.01  # rotary tables are products too, and not counted: well under this share even in tiny models


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox", "gpt2"])
def test_operations_are_what_torch_counts(family: str) -> None:
    target = TargetModel(build(family), name=family)
    tokens, prefix = 5, 12
    ids = torch.zeros(2, prefix + tokens, dtype=torch.long)
    with torch.inference_mode(), target.stock() as model:
        model.set_attn_implementation("eager")  # whose products the counter sees
        name = cache_argument(model)
        cache = model(ids[:, :prefix], use_cache=True)[name]
        with FlopCounterMode(display=False) as counter:
            model(ids[:, prefix:], use_cache=True, **{name: cache})
    counted = Footprint.of(target).work(Point(tokens, prefix, batch=2)).flops
    assert counted == pytest.approx(counter.get_total_flops(), rel=ROTARY)


def test_bytes_are_weights_once_and_the_cache_of_every_row(tiny: TargetModel) -> None:
    hidden, inner, vocab, layers, kv = 64, 128, tiny.vocab_size, 2, 2 * 2 * 16
    layer = 2 * hidden * hidden + hidden * kv + 3 * hidden * inner + 2 * hidden
    weights = layers * layer + hidden + vocab * hidden  # the final norm, the output layer; no embedding table
    for point in (Point(1, 0, 1), Point(8, 100, 4)):
        entries = point.batch * (point.prefix + point.tokens) * layers * kv
        assert Footprint.of(tiny).work(point).bytes == 4 * (weights + entries)


def test_an_embedding_counts_where_the_output_layer_shares_it() -> None:
    target = TargetModel(build("gpt2"), name="gpt2")  # tied, with a table of learned positions
    names = {id(parameter): name for name, parameter in target.model.named_parameters()}
    read = {names[id(parameter)] for parameter in read_weights(target)}
    assert set(names.values()) - read == {"transformer.wpe.weight"}


def test_quantised_weights_are_fewer_bytes_and_the_same_operations(tiny: TargetModel) -> None:
    point, plain, packed = Point(4, 32, 2), Footprint.of(tiny), Footprint.of(load_tiny(storage="int8", device="cpu"))
    assert packed.work(point).flops == plain.work(point).flops
    assert plain.weight_bytes / 4 < packed.weight_bytes < plain.weight_bytes / 3  # a byte a weight, and the scales


def test_a_sweep_is_axes_around_a_base_and_a_grid_each_point_once() -> None:
    axes, grid = {"tokens": [1, 2], "batch": [1, 3]}, {"tokens": [2, 4], "prefix": [16], "batch": [1]}
    assert sweep(BASE, axes, grid) == [Point(1, 16, 1), Point(1, 16, 3), Point(2, 16, 1), Point(4, 16, 1)]
    assert sweep(BASE, {"batch": []}, {**grid, "tokens": []}) == [Point(1, 16, 1)]


def test_prefixes_are_cut_to_the_context_window() -> None:
    assert fitting([0, 60, 61, 900], tokens=4, window=64) == [0, 60]
    assert fitting([0, 900], tokens=4, window=None) == [0, 900]
    with pytest.raises(InputError, match="tokens: expected at most the context window, 64, got 65; lower it"):
        fitting([0], tokens=65, window=64)


def test_every_point_is_timed_in_every_round(tiny: TargetModel) -> None:
    points = [Point(1, 0, 1), Point(4, 30, 1), Point(2, 8, 3)]
    rounds: list[int] = []
    measured = profile(tiny, points, rounds=3, buffer_mib=1, matrix=16, on_round=rounds.append)
    assert rounds == [0, 1, 2]
    assert set(measured.rounds_ms) == set(points)
    assert all(len(times) == 3 and min(times) > 0 for times in measured.rounds_ms.values())
    assert not measured.resumed_ms
    rows = figures(Footprint.of(tiny), measured)
    assert [Point(row["tokens"], row["prefix"], row["batch"]) for row in rows] == points
    for row in rows:
        low, high = row["ms"]["quartiles"]
        assert row["ms"]["min"] <= low <= row["ms"]["median"] <= high
        seconds = row["ms"]["median"] / 1e3
        assert row["gb_per_second"] * 1e9 * seconds == pytest.approx(row["bytes"])
        assert row["of_product_ceiling"] * measured.ceilings.flops_per_second * seconds == pytest.approx(row["flops"])


def test_a_cache_that_is_timed_has_real_memory_behind_it() -> None:
    """Pages never written are all the same page of zeros, which stays in the caches: reading would cost nothing."""
    target, before = load_tiny(device="cpu"), psutil.Process().memory_info().rss
    cache = target.new_cache(64, 4096)
    assert cache.bytes == 2**27
    assert psutil.Process().memory_info().rss - before >= cache.bytes


def test_the_limit_is_the_slower_of_reading_and_computing() -> None:
    ceilings = Ceilings(bytes_per_second=10.0, flops_per_second=100.0)
    assert ceilings.seconds(Work(bytes=50, flops=100)) == 5.0
    assert ceilings.seconds(Work(bytes=5, flops=100)) == 1.0


def test_fewer_layers_take_less_time() -> None:
    """Seven of eight layers, and of as many nodes that they are what takes the time."""
    target, point = load_tiny(device="cpu", layers=8), Point(64, 64, 1)
    measured = profile(target, [point], rounds=9, buffer_mib=1, matrix=16, exit_layer=7)
    assert len(measured.resumed_ms[point]) == 9
    share = measured.resumed(point)
    assert share is not None
    assert share[0] < 0.9


def test_a_ratio_is_taken_round_by_round() -> None:
    quiet, loud = [10.0, 10.0, 10.0], [1.0, 2.0, 40.0]  # the noise of a round falls on both points
    one, two = Point(1, 0, 1), Point(2, 0, 1)
    times = {
        one: [q * n for q, n in zip(quiet, loud, strict=True)],
        two: [2 * q * n for q, n in zip(quiet, loud, strict=True)],
    }
    assert Profile(times, Ceilings(1.0, 1.0)).ratio(two, one) == (2.0, (2.0, 2.0))


BAD = [
    (lambda: Point(0, 0, 1), r"tokens: expected an integer >= 1, got 0"),
    (lambda: Point(1, -1, 1), r"prefix: expected an integer >= 0, got -1"),
    (lambda: sweep(BASE, {"batch": [0]}, {"tokens": []}), r"batch: expected an integer >= 1, got 0"),
    (lambda: profile(load_tiny(device="cpu"), [Point(1, 0, 1)], 0), r"rounds: expected an integer >= 1, got 0"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
