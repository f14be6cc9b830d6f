"""A run records its origin."""

from __future__ import annotations

import pytest

from specdec.runs import provenance as origin


@pytest.mark.parametrize("wanted", [False, True])
def test_changes_are_a_hash_and_files_and_the_diff_only_if_it_is_wanted(
    wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {("diff", "HEAD"): "+a secret", ("diff", "HEAD", "--name-only"): "a.py\nb.py"}
    monkeypatch.setattr(origin, "_git", lambda *words: answers.get(words))
    monkeypatch.setenv(origin.KEEP_DIFF, "1" if wanted else "0")
    found = origin.changes()
    assert found is not None
    assert (found["files"], len(found["sha256"])) == (["a.py", "b.py"], 64)
    assert found.get("diff") == ("+a secret" if wanted else None)
    monkeypatch.setattr(origin, "_git", lambda *words: "")
    assert origin.changes() is None
