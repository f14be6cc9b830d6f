"""Verifiers and acceptance rules. They import only `specdec`."""
