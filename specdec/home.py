"""Where things that are made once are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """`$SPECDEC_HOME`, or `specdec` in the user's cache folder."""
    return Path(os.environ.get("SPECDEC_HOME") or user_cache_path("specdec"))
