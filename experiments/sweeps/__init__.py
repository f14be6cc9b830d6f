"""Sweeps: their jobs on disk, compared.

callbacks.py   what Hydra calls when a sweep ends     sweep.py       a sweep as it lies on disk
job_names.py   the shortest names that differ         report.py      its comparison, as a table and a page
"""
