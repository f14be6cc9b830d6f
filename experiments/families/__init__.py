"""Every causal-LM family of `transformers` with tiny random weights (docs/models.md).

tiny_models.py    a tiny model of each type            family_check.py   its text against `generate`
"""
