"""Entry points called in this process, as from a shell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.sweeps.launch import launch


@dataclass
class Done:
    status: int
    out: str
    err: str


def command(
    main: Callable[[], None], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., Done]:
    """Return a function that calls `main` with overrides; the run folder is `folder`."""

    def call(*overrides: str, flags: Sequence[str] = ()) -> Done:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        dashed = [word for word in overrides if word.startswith("-")]  # argparse wants them together
        rest = [word for word in overrides if not word.startswith("-")]
        monkeypatch.setattr(sys, "argv", ["command", *flags, *dashed, f"hydra.run.dir={folder}", *rest])
        capsys.readouterr()
        try:
            launch(main)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    return call
