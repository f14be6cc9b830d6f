"""Faults injected into every entry point: `make test-faults`, or `python -m tests.faults` for the table of figures."""
