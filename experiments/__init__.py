"""Entry points: `python -m experiments.<name>` from the project's root. Compose, instantiate, call, log."""

import os
from pathlib import Path

# Before torch loads OpenMP: its threads spin at every barrier, and beside a busy neighbour each of the hundreds of
# barriers in a forward then costs a time slice. Ten thousand rounds bridge the gaps in a forward, no more.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import drafters
import specdec
import verifiers

_root = Path(__file__).resolve().parents[1]
for _package in (specdec, drafters, verifiers):
    # Other projects on the package index use these names too; importing one of theirs would fail much later.
    _found = Path(str(_package.__file__)).resolve().parents[1]
    if _found != _root:
        raise ImportError(
            f"the package '{_package.__name__}' was imported from {_found}, expected {_root}; "
            f"run from the project's root, and `pip uninstall {_package.__name__}` if another project installed it"
        )
