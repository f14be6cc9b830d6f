"""Acceptance rules: one file, one rule, one YAML in `conf/acceptance/`."""
