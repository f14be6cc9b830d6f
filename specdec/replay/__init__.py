"""Predict the steps and the speed of other trees from one recorded run.

trace.py    the trace: proposals and the target's answers at every position
record.py   record a trace
replay.py   replay it with other trees
prescribed.py  rates of acceptance, of a run or of a schedule
"""
