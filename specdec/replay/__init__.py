"""Replay: what other trees would have brought, from one recorded run.

trace.py    the file of proposals and the target's answers at every position
record.py   make it
replay.py   try trees on it
"""
