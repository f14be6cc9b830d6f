"""The tiny target's text, for adapters to learn."""

from tests.specdec.training.conftest import data

__all__ = ["data"]
