"""Sweeps: read their jobs from disk and compare them.

launch.py      starts an entry point, alone or as a sweep
callbacks.py   begins a sweep on disk, and compares its jobs at the end
sweep.py       reads and writes a sweep on disk
job_names.py   names jobs by the options in which they differ
report.py      compares the jobs in tables, a plot and a page
"""
