"""Drafters: one file, one drafter, one YAML in `conf/drafter/`. Imports `specdec` only."""
