"""Measurements: methods take turns on the same prompts, in the same process.

benchmark.py      methods taking turns; the summary of a run
rivals.py         transformers' generate and llama.cpp, timed on the same prompts
comparison.py     whether two groups of runs differ, paired over prompts
rules.py          acceptance rules on the very same trees
batch_curve.py    speedup over batch size
overhead.py       time of a step outside the forwards
profiling.py      cost of a forward, beside the machine's ceilings
ratios.py         ratios measured side by side, and the file that holds their goals
worth.py          one number for a search: speedup, tokens per step or per second
quiet.py          what else the machine did during a timing
device_locks.py   one timing per device at a time
gguf_file.py      a target's weights as llama.cpp reads them
"""
