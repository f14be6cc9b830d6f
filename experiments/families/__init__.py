"""Check every causal-LM family of `transformers` with tiny random weights (docs/models.md).

tiny_models.py    builds a tiny model of each type
family_check.py   compares its texts with those of `generate`
"""
