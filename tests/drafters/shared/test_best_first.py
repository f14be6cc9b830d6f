"""Best-first growth against all paths."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from drafters.shared.best_first import best_first

SHARES = st.lists(st.sampled_from([0.1, 0.2, 0.35, 0.6, 0.9]), min_size=3, max_size=3)


@given(st.lists(SHARES, min_size=3, max_size=3), st.integers(1, 12))
def test_the_most_probable_paths_are_kept(table: list[list[float]], nodes: int) -> None:
    def followers(token: int, depth: int) -> list[tuple[int, float, int]]:
        return [(to, sure, to) for to, sure in enumerate(table[token])] if depth < 3 else []

    tokens, parents, confidence = best_first(0, [0], followers, nodes)
    assert len(tokens) == nodes + 1
    gains = [1.0]
    for parent, sure in zip(parents[1:], confidence[1:], strict=True):
        gains.append(gains[parent] * sure)

    def gain(path: tuple[int, ...]) -> float:
        whole = 1.0
        for before, token in zip((0, *path), path, strict=False):
            whole *= table[before][token]
        return whole

    every = sorted((gain(p) for length in (1, 2, 3) for p in product(range(3), repeat=length)), reverse=True)
    assert all(abs(a - b) < 1e-12 for a, b in zip(sorted(gains[1:], reverse=True), every[:nodes], strict=True))


def test_sources_are_merged_and_improbable_paths_left_out() -> None:
    sources = {"a": [(1, 0.5, "end"), (2, 0.4, "end")], "b": [(1, 0.8, "tail")], "tail": [(3, 0.9, "end")], "end": []}
    merged = best_first(0, ["a", "b"], lambda cursor, depth: sources[cursor], 9)
    assert merged == ([0, 1, 3, 2], [-1, 0, 1, 0], [1.0, 0.8, 0.9, 0.4])
    assert best_first(0, ["a", "b"], lambda cursor, depth: sources[cursor], 9, 0.5)[0] == [0, 1, 3]
