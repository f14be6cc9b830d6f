"""Atomic writes, locked run folders, and safe reading of files from elsewhere.

durable.py   write a file or folder atomically and durably
home.py      cache for converted models and compiled kernels
claims.py    lock a folder for the run that writes it
checked.py   read untrusted JSON, YAML and xz within limits
weights.py   read untrusted weights within limits
"""
