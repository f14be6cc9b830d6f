"""Times, bytes and memory against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specdec.errors import InputError
from specdec.hardware import ModelShape, Precision, Roofline, load_config
from specdec.hardware.roofline import Reach
from tests.specdec.hardware.made import A100, SLOW, dense, mixture, shape


def kept(name: str, **options: Any) -> Roofline:
    return Roofline(ModelShape.of(load_config(name), name), A100, **options)


def test_a_dense_forward_by_hand() -> None:
    """3 nodes in 2 rows behind 5 tokens; bfloat16."""
    forward = Roofline(shape(dense()), SLOW).forward(3, 2, 5)
    weights, attention = forward.parts
    rows, elements, vectors = 6, 1280 + 80, 40
    assert weights.bytes == 2 * (elements + vectors + rows * (272 + 8 + 10))
    assert weights.flops == 2 * rows * elements
    cached, written_and_read = 2 * 2 * 8 * (5 + 3), 2 * 2 * 8 * 3  # layers x heads x (key + value) x tokens
    assert attention.bytes == 2 * 2 * (cached + written_and_read)
    assert attention.flops == 2 * 2 * (2 * 2 * 8) * 3 * 8  # 2 rows, each of 3 nodes against 8 tokens
    assert weights.seconds == pytest.approx(max(weights.bytes / 1e9, weights.flops / 1e10))
    assert forward.seconds == pytest.approx(weights.seconds + attention.seconds)
    assert forward.bound == "memory"


def test_grouped_queries_read_fewer_keys_and_do_as_much() -> None:
    many, few = (Roofline(shape(dense(heads=4, kv_heads=kv)), SLOW).forward(1, 1, 100).parts[1] for kv in (4, 1))
    assert few.flops == many.flops
    io = 2 * 2 * 4 * 4  # queries in, results out: 2 bytes x layers x heads x (key + value)
    assert 4 * (few.bytes - io) == many.bytes - io


def test_more_tokens_touch_more_experts() -> None:
    """So a verify step of a mixture costs more than a decode step, where that of a dense model hardly does."""
    line = Roofline(shape(mixture()), SLOW)
    one, three = (line.forward(n, 1, 0).parts[0] for n in (1, 3))
    expert, activations = 384, shape(mixture()).features + 8 + 10 + 2 * (40 + 24)  # of a token, its two experts'
    assert three.bytes - one.bytes == pytest.approx(2 * ((3.5 - 2) * expert + 2 * activations))
    assert three.flops == 3 * one.flops
    mixtral, llama = (Roofline(ModelShape.of(load_config(n), n), A100) for n in ("mixtral_8x7b", "llama2_7b"))
    assert mixtral.seconds(8) > 3 * mixtral.seconds(1)
    assert llama.seconds(8) < 1.01 * llama.seconds(1)


def test_what_13_billion_parameters_leave_of_80_gigabytes() -> None:
    line = kept("llama2_13b")
    assert line.weight_bytes == pytest.approx(26.03e9, rel=1e-3)
    assert line.free_bytes == pytest.approx(53.97e9, rel=1e-3)
    assert line.kv_bytes == 2 * 40 * 2 * 5120
    assert line.largest_batch(2048) == int(line.free_bytes // (2048 * 819_200)) == 32
    assert line.largest_context() == 4096  # its own window, not the memory


def test_decoding_is_bound_by_memory_and_a_prompt_by_arithmetic() -> None:
    line = kept("llama2_7b")
    assert line.decode().bound == "memory"
    assert line.decode().seconds == pytest.approx(13.5e9 / 2039e9, rel=0.01)
    assert line.prefill(2048).bound == "compute"
    read = 2 * 2048 * line.shape.dense + 2 * line.shape.output  # logits at the last token only
    assert line.prefill(2048).parts[0].flops == read
    pairs = 2048 * 2049 / 2
    assert line.prefill(2048).parts[1].flops == 2 * 32 * 32 * 256 * pairs


def test_weights_and_attention_are_bound_apart() -> None:
    """Many rows: arithmetic bounds the products while memory still bounds reading the cache."""
    weights, attention = kept("llama2_7b").decode(512, 4096).parts
    assert not weights.memory_bound
    assert attention.memory_bound


def test_precision_halves_what_is_read() -> None:
    whole, half = kept("llama2_7b"), kept("llama2_7b", precision=Precision("int8", "int8"))
    assert half.weight_bytes == pytest.approx(whole.weight_bytes / 2, rel=1e-4)
    assert half.kv_bytes == whole.kv_bytes / 2
    assert half.decode(1, 4096).seconds == pytest.approx(whole.decode(1, 4096).seconds / 2, rel=0.01)
    assert half.forward(200).seconds == pytest.approx(whole.forward(200).seconds, rel=0.01)  # computed in bfloat16


def test_a_window_bounds_what_is_read_and_kept() -> None:
    open_, windowed = (
        Roofline(replace(shape(dense()), attention=[replace(shape(dense()).attention[0], window=w)]), SLOW)
        for w in (None, 10)
    )
    assert windowed.decode(1, 5).parts == open_.decode(1, 5).parts
    assert windowed.decode(1, 5000).parts == windowed.decode(1, 500).parts
    assert windowed.cache_bytes(3, 500) == windowed.cache_bytes(3, 10) == open_.cache_bytes(3, 10)


def test_tensor_parallel_devices_share_the_work_and_talk() -> None:
    one, two = (Roofline(shape(dense()), SLOW, devices=t) for t in (1, 2))
    vectors = 2 * 40
    assert two.weight_bytes - vectors == (one.weight_bytes - vectors) / 2
    assert two.kv_bytes == one.kv_bytes / 2
    assert two.forward(4).flops == one.forward(4).flops / 2
    # a ring over two sends half of each sum twice: 2 sums x 2 layers of 4 tokens x 8, and half the logits once
    assert two.forward(4).communication == pytest.approx(2 * (4 * 4 * 8 + 4 * 10 / 2) / 1e8)
    assert one.forward(4).communication == 0
    waits = replace(two, reach=Reach(message_seconds=1.0))
    assert waits.forward(4).communication == pytest.approx(two.forward(4).communication + 5)
    assert waits.forward(4).bound == "communication"


def test_keys_are_copied_where_devices_outnumber_their_heads() -> None:
    shapes = shape(dense(heads=4, kv_heads=2))
    assert Roofline(shapes, SLOW, devices=4).kv_bytes == Roofline(shapes, SLOW, devices=2).kv_bytes


def test_what_is_reached_of_the_peaks_stretches_time() -> None:
    peak = kept("llama2_7b")
    real = replace(peak, reach=Reach(memory=0.5, compute=0.25, overhead_seconds=0.001))
    assert real.seconds(1) == pytest.approx(2 * peak.seconds(1) + 0.001)
    assert real.prefill(2048).seconds == pytest.approx(4 * peak.prefill(2048).seconds + 0.001)


def test_heads_are_read_once_and_have_no_cache() -> None:
    target = kept("llama2_7b")
    heads = Roofline(ModelShape.of_heads(740_000_000, target.shape), A100)
    assert heads.seconds(1) == pytest.approx(1.48e9 / 2039e9)
    assert heads.seconds(1, 1, 100_000) == heads.seconds(1)
    assert heads.cache_bytes(8, 4096) == 0


def test_a_model_that_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(InputError) as error:
        kept("llama2_70b").require_fit()
    assert "llama2_70b on 1 x A100: expected weights (138.0 GB) within 80 GB a device" in str(error.value)
    assert "got 58.0 GB too many on each" in str(error.value)
    kept("llama2_70b", devices=2).require_fit(1, 4096)
    with pytest.raises(InputError, match=r"cache of 64 x 4,096 tokens"):
        kept("llama2_70b", devices=2).require_fit(64, 4096)
    assert kept("llama2_70b").largest_batch(512) == kept("llama2_70b").largest_context() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices: expected an integer >= 1, got 0"),
        ({"devices": 3}, "32 query and 32 KV heads of llama2_7b can be split over, got 3"),
        ({"devices": 2, "link": "wire"}, "A100: link: expected one of nvlink, pcie, got 'wire'"),
        ({"precision": Precision(compute="float16")}, "A100: compute: expected one of bfloat16"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        kept("llama2_7b", **options)
    assert message in str(error.value)


def test_bad_points_and_shares() -> None:
    line = kept("llama2_7b")
    for point, what in (((0, 1, 1), "nodes"), ((1, 0, 1), "batch"), ((1, 1, -1), "context")):
        with pytest.raises(InputError, match=f"{what}: expected an integer >="):
            line.forward(*point)
    with pytest.raises(InputError, match=r"reach.memory: expected a share in \(0, 1\], got 1.5"):
        Reach(memory=1.5)
    with pytest.raises(InputError, match=r"reach.message_seconds: expected seconds >= 0, got -1"):
        Reach(message_seconds=-1)
    with pytest.raises(InputError, match="did you mean bfloat16"):
        Precision(weights="bfloat")
