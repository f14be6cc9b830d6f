"""Verifiers and acceptance rules. Imports `specdec` only."""
