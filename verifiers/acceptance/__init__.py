"""Acceptance rules: each has one file here and one YAML in `conf/acceptance/`."""
