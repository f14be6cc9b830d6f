"""Start an entry point: alone, or as a sweep."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from experiments.common.composition import checked_composition
from experiments.common.entry import ignore_schemas_of_launchers, one_line_errors
from experiments.common.terminal import steady_output
from experiments.sweeps.callbacks import sweep_that_ends


def launch(main: Callable[[], None]) -> None:
    """Call a `hydra.main` function. Errors of it or of Hydra end the process as in `one_line_errors`."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # makes Hydra raise instead of printing errors itself
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"  # one line, no source code
    ignore_schemas_of_launchers()
    with steady_output(), one_line_errors(), checked_composition(), sweep_that_ends():
        main()
