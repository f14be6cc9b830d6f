"""Start and end of every entry point: errors as one line, the exit status, progress on stderr."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
)
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from experiments.common.escape import SafeConsole, visible
from experiments.common.faults import explain_fault
from experiments.common.signals import exit_status, stopping
from specdec import components
from specdec.errors import InputError
from specdec.options import advice

BAD_INPUT, SOME_FAILED = 2, 3
LONGEST = 2000  # characters of an error message
CONF = str(components.CONF)
MERGING = "Error merging override"
NO_GROUP = r"(?s)Could not override '(.+?)'\..*\+[^=]*=(\S*)"
stderr = SafeConsole(stderr=True)


def ignore_schemas_of_launchers() -> None:
    """Ignore Hydra's warning that files of `conf/hydra/launcher` have the names of the plugins' schemas."""
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema", UserWarning)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors into one line and an exit status.

    - bad input, faults of the disk: one line, status 2
    - signals: status 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP)
    - bugs: keep their traceback

    Jobs are wrapped as well (`task.py`), because Hydra would add its own lines to a job's exceptions.
    """
    try:
        with stopping():
            yield
    except KeyboardInterrupt as error:
        print(f"interrupted: {error or 'SIGINT'}", file=sys.stderr)
        sys.exit(exit_status(error))
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {visible(shortened(' '.join(message.split())))}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def shortened(message: str) -> str:
    """Return the message without its middle if it is too long, as when it repeats a long input."""
    half = LONGEST // 2
    return message if len(message) <= LONGEST else f"{message[:half]} ... {message[-half:]}"


def explain(error: BaseException) -> str | None:  # noqa: PLR0911  (one return per kind of error)
    """Return the message for the user, or None for a bug, which keeps its traceback."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__)
    if isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, InputError):  # raised by a resolver
        return explain(error.__cause__)
    unknown = error.__cause__
    if isinstance(unknown, ConfigKeyError | ConfigAttributeError) and isinstance(unknown.parent_node, DictConfig):
        options = [str(key) for key in unknown.parent_node]
        fix = advice(str(unknown.key), options)
        return f"{unknown.full_key}: expected an option that exists ({', '.join(options)}), got {unknown.key!r}; {fix}"
    if isinstance(error, ConfigCompositionException) and str(error).startswith(MERGING):
        key, _, value = str(error).removeprefix(MERGING).strip().lstrip("+~").partition("=")
        return f"{key}: expected a value that fits there, got {value}; {str(unknown).splitlines()[0]}"
    if isinstance(error, ConfigCompositionException) and (unlisted := re.match(NO_GROUP, str(error))):
        name, choice = unlisted.groups()
        return (
            f"{name}: expected an option of this command, got {name}={choice}; leave it out (--help lists the options)"
        )
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        near = get_close_matches(choice, error.options, n=1, cutoff=0.4)
        fix = f"did you mean {near[0]}?" if near else "check the spelling"
        return f"{group}: expected one of {', '.join(error.options)}, got {choice!r}; {fix}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: expected a value, got none; pass {error.full_key}=..."
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            f"memory: expected the batch to fit, got '{str(error).splitlines()[0]}'; "
            "lower generation.batch_size or generation.max_new_tokens"
        )
    if isinstance(error, (InputError, CompactHydraException, OmegaConfBaseException)):
        return str(error).strip()
    if isinstance(error, OSError):
        return explain_fault(error)
    return None
