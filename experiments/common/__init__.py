"""Parts that several entry points use.

entry.py         starts and ends entry points           task.py         makes an entry point a picklable function
composition.py   checks configs before Hydra acts       components.py   decides which classes a config may name
parts.py         builds parts by their names            settings.py     checks options in one place
assembly.py      builds a benchmark from a config       tables.py       prints tables
terminal.py      handles terminals of all kinds         progress.py     prints progress
escape.py        escapes text that users wrote          signals.py      handles SIGINT, SIGTERM and SIGHUP
faults.py        explains full disks and the like       claiming.py     claims a folder per run
resources.py     assigns threads and devices            cost_model.py   predicts costs from options
objective.py     picks the number for a search          acceptance_study.py   runs the synthetic comparison
"""
