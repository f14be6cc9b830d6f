"""How every entry point starts and ends: errors as one line, exit status, progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console

from specdec.errors import InputError

BAD_INPUT, INTERRUPTED = 2, 130
stderr = Console(stderr=True)


def launch(main: Callable[[], None]) -> None:
    """Call a `hydra.main` function; bad input becomes one line and status 2, Ctrl-C status 130."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises, and leaves the words to us
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def explain(error: BaseException) -> str | None:
    """What the user should read, or None for a bug, which keeps its traceback."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: expected a value, got none; pass {error.full_key}=..."
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            f"memory: expected the batch to fit, got '{str(error).splitlines()[0]}'; "
            "lower generation.batch_size or generation.max_new_tokens"
        )
    if isinstance(error, (InputError, CompactHydraException, OmegaConfBaseException)):
        return str(error).strip()
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"hydra.run.dir: expected a folder that can be written, got {error}; choose another with hydra.run.dir=..."
        )
    return None
