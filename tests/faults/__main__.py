"""Run all faults and print the table of docs/reliability.md: python -m tests.faults [pytest's options]"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the processes that the faults hit are forked from this one

import pytest

OPTIONS = ["-o", "addopts=-q --strict-markers -p no:dash", "-p", "no:cacheprovider", "-n", "2"]

HERE = Path(__file__).parent
# of the ordinary tests, those that count too: files and configs from somebody else
BESIDE = [
    str(HERE.parent / file)
    for file in (
        "specdec/files/test_checked.py",
        "specdec/files/test_weights.py",
        "specdec/runs/test_records.py",
        "experiments/common/test_trust.py",
    )
]

if __name__ == "__main__":
    sys.exit(pytest.main([*OPTIONS, "-m", "fault", str(HERE), *BESIDE, *sys.argv[1:]]))
