"""Runs on disk.

provenance.py           where a run comes from: commit, versions, machine
summary.py              the schema of summary.json
log.py                  write a run: steps, generations, summary, provenance; copy it to a tracker
read.py                 read runs: finished, growing, broken, from older versions
records.py              check the types of what is read
accelerate_tracker.py   trackers of accelerate (TensorBoard, MLflow, ...)
"""
