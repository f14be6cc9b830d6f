"""The tiny target's text, for adapters to learn."""

from tests.training.conftest import data

__all__ = ["data"]
