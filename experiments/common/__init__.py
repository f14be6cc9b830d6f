"""Parts that several entry points use.

entry.py         the frame of an entry point            task.py         an entry point as a picklable function
composition.py   configs checked before Hydra acts      components.py   which classes a config may name
parts.py         target, drafter, rule from a config    settings.py     options checked in one place
tables.py        tables in the terminal                 terminal.py     terminals of all kinds
escape.py        text of users, where it is shown       progress.py     progress bars
signals.py       SIGINT, SIGTERM, SIGHUP                faults.py       full disks and their like, in one line
claiming.py      a folder per run                       resources.py    threads and devices of a job
cost_model.py    costs from options                     objective.py    the number that a search gets
"""
