"""Files and folders that are whole or absent, belong to one run, and are checked when they are read.

durable.py   write a file or folder atomically and durably
home.py      where converted models and compiled kernels are kept
claims.py    a folder belongs to one run while it lives
checked.py   JSON, YAML and NPZ that others wrote: type, shape, range, size
weights.py   safetensors that others wrote
"""
