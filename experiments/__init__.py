"""Entry points, listed by `python -m experiments`. They compose a config, build its parts, run them and log."""

import sys

import drafters
import specdec
import verifiers

try:
    from specdec.components import require_ours
    from specdec.errors import InputError
    from specdec.extras import require_extra
except ImportError as _error:
    raise ImportError(
        f"the package 'specdec' at {specdec.__file__} is another project's; run from the project's root, "
        "and `pip uninstall specdec` if another project installed it"
    ) from _error

try:
    for _name in ("plotly", "jinja2", "dash"):
        require_extra(_name, "experiments")
except InputError as _error:
    print(f"error: {_error}", file=sys.stderr)
    sys.exit(2)

# Other projects on the package index use these names too; importing one of theirs would fail much later.
for _package in (drafters, verifiers, sys.modules[__name__]):
    require_ours(_package)
