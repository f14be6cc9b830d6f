"""Measurements: methods take turns on the same prompts, in the same process.

benchmark.py      time methods in turns
trials.py         the texts of a benchmark, and sums over them
summarise.py      the summary of a benchmark
divergence.py     its texts compared with those of the plain target
rivals.py         transformers' generate and llama.cpp, timed on the same prompts
comparison.py     whether two groups of runs differ, paired over prompts
rules.py          compare acceptance rules on the same trees
batch_curve.py    speedup over batch size
overhead.py       time of a step outside the forwards
profiling.py      time of a forward, compared with the machine's ceilings
ratios.py         ratios measured side by side, and the file of their goals
worth.py          figures for a search: speedup, tokens per step, tokens per second
quiet.py          what else ran on the machine during a timing
device_locks.py   one timing per device at a time
gguf_file.py      write a target's weights in the format of llama.cpp
"""
