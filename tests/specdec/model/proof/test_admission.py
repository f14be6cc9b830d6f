"""Models are let in on the fastest path that gives the stock model's results, and refused otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.errors import InputError
from specdec.model.attention import AttentionContext, masks, tree_attention
from specdec.model.attention.aten_flash import AtenFlash
from specdec.model.block import Block, TargetOutput
from specdec.model.cache import TreeCache
from specdec.model.load import load_tiny
from specdec.model.proof import admission, memory
from specdec.model.proof.lengths import far_positions
from specdec.model.proof.twin import small_twin, windows
from specdec.model.target import TargetModel
from tests.support.families import FAMILIES, build

MEMORY = {name: getattr(memory, name) for name in ("recall", "remember")}  # which other tests do without
WHOLE_VECTORS = 16  # the size of heads that kernels cover on every CPU


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_proven(family: str) -> None:
    model = build(family)
    proof = TargetModel(model, name=family).proof
    assert proof is not None
    assert proof.worst[1] < 1e-4, "rounding only"
    stages = " ".join(proof.differences)
    for stage in ("chunk 2 of a prompt", "a decode step", "a branching tree", "a step after a kept path"):
        assert stage in stages
    # chunks of 6 tokens are shorter than the text, and leave it no place further out
    assert ("past" in stages) == (getattr(model.config, "attention_chunk_size", None) is None)
    assert ("small twin" in stages) == bool(windows(model.config))


def wrong_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings see each other."""
    plain = AttentionContext.block_mask

    def causal(self: AttentionContext) -> Tensor:
        return plain(self) | torch.ones(self.new, self.block, dtype=torch.bool).tril(self.block - self.new)

    monkeypatch.setattr(AttentionContext, "block_mask", causal)


def wrong_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is one token too wide: nothing shorter than the window shows it."""
    plain = masks._both

    def both(tree: AttentionContext, rule: masks.MaskFunction) -> Tensor:
        return plain(tree, rule) | plain(tree, lambda row, head, query, key: rule(row, head, query - 1, key))

    monkeypatch.setattr(masks, "_both", both)


def wrong_kept_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of a path are committed where they stand in the tree."""
    monkeypatch.setattr(TreeCache, "keep", lambda self, _path, counts: self.advance(counts))


def wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are taken to be as long as the longest."""
    plain = AttentionContext.visible

    def visible(self: AttentionContext) -> Tensor:
        slots = torch.arange(self.slots)
        return plain(self) | (slots < max(self.host_lengths))

    monkeypatch.setattr(AttentionContext, "visible", visible)


@pytest.mark.parametrize(
    ("family", "fault", "stage"),
    [
        ("gemma2", wrong_block_mask, "a branching tree"),
        ("gemma2", wrong_kept_path, "a step after a kept path"),
        ("gemma2", wrong_row, ""),
        ("gpt_oss", wrong_window, r"small twin \(sliding_window\)"),
    ],
)
def test_a_wrong_forward_is_refused(
    monkeypatch: pytest.MonkeyPatch, family: str, fault: Callable[[pytest.MonkeyPatch], None], stage: str
) -> None:
    model = build(family, sliding_window=4096)
    if fault is not wrong_window:  # through the mask at every length
        model = build(family, sliding_window=6)
    fault(monkeypatch)
    message = rf"target: expected forwards .* what the stock model gives, got \w+ in float32 .*\(.*{stage}.*\); "
    with pytest.raises(InputError, match=message):
        TargetModel(model, name=family)


@pytest.mark.parametrize("length", [8192, 40])
def test_what_changes_behind_a_named_length_is_found(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Positions behind a length are computed otherwise by us: as if a table ended there."""
    model = build("llama", max_position_embeddings=131072)
    model.config.original_max_position_embeddings = length
    plain = TargetModel.forward

    def forward(self: TargetModel, cache: TreeCache, block: Block) -> TargetOutput:
        positions = block.positions
        return plain(self, cache, replace(block, positions=positions.where(positions < length, positions + 1)))

    TargetModel(model, name="llama")
    monkeypatch.setattr(TargetModel, "forward", forward)
    # a shift of all positions changes nothing with rotary embeddings; one in the midst of a text does
    if length == 40:
        model.config.original_max_position_embeddings = length - 5
    else:
        monkeypatch.setattr("specdec.model.proof.admission.far_positions", lambda *_: [(length, length - 4)])
    with pytest.raises(InputError, match="past"):
        TargetModel(model, name="llama")


def test_far_positions_stay_within_the_window() -> None:
    config = build("llama").config
    config.max_position_embeddings, config.rope_parameters["original_max_position_embeddings"] = 1000, 100
    assert far_positions(config, 1000, 20) == [(100, 100), (980, 980)]
    assert far_positions(config, None, 20) == [(100, 100), (1000, 1000)]
    config.attention_chunk_size = 64
    assert far_positions(config, 1000, 20) == [(100, 128)], "none behind the last whole chunk"


def test_faulty_fused_layers_are_given_up_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", head_dim=WHOLE_VECTORS)
    layer = model.model.layers[1]
    plain = type(layer).forward
    monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: plain(layer, *args, **kwargs) * 1.1)
    with pytest.warns(UserWarning, match="LlamaForCausalLM runs module by module: its layers are wired differently"):
        target = TargetModel(model, name="llama")
    assert target.fused is None
    assert target.proof is not None
    assert not target.proof.path.fused


def broken_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AtenFlash.prefix

    def prefix(self: AtenFlash, *args: Any) -> Any:
        out, lse = plain(self, *args)
        return out * 1.05, lse

    monkeypatch.setattr(AtenFlash, "prefix", prefix)


def test_a_kernel_that_differs_is_exchanged_only_if_the_choice_was_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_flash(monkeypatch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        target = TargetModel(build("mixtral"), name="mixtral")
    assert target.kernel.name == "dense"
    assert target.runtime is not None, "the products are right"
    assert str(said[-1].message).startswith("MixtralForCausalLM runs module by module, on kernel=dense: ")
    with pytest.raises(InputError, match=r"on kernel=aten_flash \(.*\); use target.kernel=dense$"):
        TargetModel(build("mixtral"), name="mixtral", kernel="aten_flash")


def test_an_exception_inside_the_comparison_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gemma2")

    def fail(*_: object, **__: object) -> None:
        raise IndexError("index out of range\nin self")

    monkeypatch.setattr(tree_attention, "masked_attention", fail)
    monkeypatch.setattr(TargetModel, "_probe", lambda _self: [(2, 8, 8)] * 3)
    message = r"target: expected .*, got Gemma2ForCausalLM \(IndexError: index out of range\); choose another model"
    with pytest.raises(InputError, match=message):
        TargetModel(model, name="gemma2")


@pytest.mark.parametrize(
    ("family", "options"), [("mistral", {"sliding_window": 1}), ("llama4_text", {"attention_chunk_size": 1})]
)
def test_a_window_that_transformers_forgets_with_a_cache_is_refused(family: str, options: dict[str, int]) -> None:
    """A cache of transformers keeps everything for a window of one token: its text differs from its own forwards."""
    with pytest.raises(InputError, match=r"runs alike with a KV cache and without, got .* part behind its window"):
        TargetModel(build(family, **options), name=family)
    assert TargetModel(build(family, **dict.fromkeys(options, 2)), name=family).proof


def test_weights_that_give_nan_are_refused() -> None:
    model = build("gemma2")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = torch.nan
    with pytest.raises(InputError, match="expected weights that give finite results, got Gemma2ForCausalLM"):
        TargetModel(model, name="gemma2")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_lower_precision_is_proven_with_a_twin_in_fp32(
    monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype
) -> None:
    target = TargetModel(build(family).to(dtype), name=family)
    assert target.proof is not None
    assert any("small twin (no window)" in stage for stage in target.proof.differences)
    wrong_kept_path(monkeypatch)
    with pytest.raises(InputError, match="a step after a kept path"):
        TargetModel(build(family).to(dtype), name=family)


def test_a_twin_has_a_layer_of_every_kind_and_stays_small() -> None:
    model = build("gemma3_text", sliding_window=512)
    twin = small_twin(model, "sdpa")
    assert set(twin.config.layer_types) == set(model.config.layer_types)
    assert twin.config.sliding_window == 8
    with torch.device("meta"):
        large = build("llama", hidden_size=2048, intermediate_size=8192, vocab_size=50_000)
    large_twin = small_twin(large.to_empty(device="cpu"), "sdpa")
    assert sum(p.numel() for p in large_twin.parameters()) < 40_000_000
    assert large_twin.config.hidden_size == 2048


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    monkeypatch.setattr(admission, "REMEMBERED_FROM", 0.0)
    for name, function in MEMORY.items():
        monkeypatch.setattr(memory, name, function)
    return tmp_path / "proofs"


def proof_of(**options: Any) -> admission.Proof:
    proof = load_tiny(device="cpu", runtime="stock", **options).proof
    assert proof is not None
    return proof


def test_a_proof_is_remembered_for_the_same_weights_and_options(home: Path) -> None:
    first = proof_of()
    again = proof_of()
    assert (first.remembered, again.remembered) == (False, True)
    assert again.differences == first.differences
    for other in ({"seed": 1}, {"kernel": "dense"}, {"layers": 3}, {"dtype": "float64"}):
        assert not proof_of(**other).remembered
    assert proof_of().remembered


def test_a_damaged_file_is_made_again(home: Path) -> None:
    proof_of()
    (file,) = home.glob("*.json")
    whole = file.read_bytes()
    for damaged in (b"", whole[:20], b"[1, 2]", b'{"differences": 3}', b"\xff\xfe"):
        file.write_bytes(damaged)
        assert not proof_of().remembered
        assert proof_of().remembered


def test_where_nothing_can_be_written_a_model_loads_all_the_same(home: Path) -> None:
    home.parent.joinpath("proofs").write_text("a file in the place of the folder")
    assert not proof_of().remembered
    assert not proof_of().remembered


def test_a_remembered_step_down_is_taken_and_said_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_flash(monkeypatch)
    model = build("mixtral")
    for remembered in (False, True):
        with pytest.warns(UserWarning, match="on kernel=dense"):
            target = TargetModel(model, name="mixtral", runtime="stock")
        assert target.proof is not None
        assert (target.proof.remembered, target.kernel.name) == (remembered, "dense")
