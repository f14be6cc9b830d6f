"""Runs on disk.

log.py    write a run: steps, generations, summary, provenance; trackers mirror it
read.py   read runs back: finished, growing, broken, old
"""
