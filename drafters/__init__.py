"""Drafters: each has one file or folder here and one YAML in `conf/drafter/`. They import only `specdec`."""
