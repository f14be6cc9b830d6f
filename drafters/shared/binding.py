"""Bind a drafter to a target: read its weights once, not for every batch."""

from __future__ import annotations

from collections.abc import Callable

from specdec.model.target import TargetModel


class Binding:
    """The target that a drafter has made its parts for."""

    def __init__(self) -> None:
        self._target: TargetModel | None = None

    def to(self, target: TargetModel, bind: Callable[[TargetModel], None]) -> None:
        """Call `bind` if `target` is another one than before."""
        if target is not self._target:
            bind(target)
            self._target = target

    @property
    def target(self) -> TargetModel:
        assert self._target is not None, "start() binds a drafter to its target"
        return self._target
