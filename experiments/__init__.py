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

RENAMED = {
    "suite": "ratios",
    "distill": "train drafter=draft_model",
    "study_acceptance": "compare_acceptance synthetic=true",
}
_module = "".join(sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1]) if "-m" in sys.orig_argv else ""
if (_old := _module.removeprefix("experiments.")) != _module and _old in RENAMED:
    # Python imports this package before it looks for the module, which no longer exists.
    print(f"error: command: expected one that exists, got {_module}; it is called {RENAMED[_old]} now", file=sys.stderr)
    sys.exit(2)

# Other projects on the package index use these names too; importing one of theirs would fail much later.
for _package in (drafters, verifiers, sys.modules[__name__]):
    require_ours(_package)
