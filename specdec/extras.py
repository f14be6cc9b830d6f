"""Packages that only some features need, and the extras that install them."""

from __future__ import annotations

from importlib.util import find_spec

from specdec.errors import InputError

EXTRAS = {"plotly": "reports", "jinja2": "reports", "dash": "reports", "peft": "adapters", "datasets": "data"}


def require_extra(package: str, option: str) -> None:
    """Refuse to go on without an optional package.

    Args:
        package: a key of `EXTRAS`.
        option: name used in error messages: the feature that needs it.

    Raises:
        InputError: it is not installed.
    """
    if find_spec(package) is None:
        fix = f'pip install -e ".[{EXTRAS[package]}]", or ".[all]"'
        raise InputError(option, expected=f"the package {package}", got="no such installation", fix=fix)
