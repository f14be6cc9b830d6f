"""Static trees on disk, and the tree that is used before one was measured.

A tree file is YAML. `paths` lists index paths, best first, so that the first n of them are the best tree with n drafted
nodes; the measured figures stand beside it. `python -m experiments.build_tree` writes such files. A bare list of index
paths, as other projects publish, is read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from specdec.errors import InputError
from specdec.files.checked import read_yaml
from specdec.files.durable import write_text
from specdec.trees.topology import Topology, best_tree

TREE_FILE = "tree.yaml"  # its name in the folder of the heads that it was measured for
GUESSED_HEADS, GUESSED_RANKS = 4, 10


def read_tree(file: str | Path, what: str = "drafter.tree") -> Topology:
    """Return every path of a tree file.

    `what`: name used in error messages.

    Raises:
        InputError: no such file, not YAML, no paths in it, or paths that make no tree.
    """
    return Topology.of(_paths(Path(file), what), what)


def first_paths(nodes: int, file: Path | None, heads: int) -> Topology:
    """Return the best `nodes` paths of a tree file, or of a guess for that many heads if there is no file.

    Raises:
        InputError: as `read_tree`, or the file holds fewer paths.
    """
    if file is None or not file.exists():
        return Topology.of(best_tree(guessed_accuracies(heads), nodes)[0])
    paths = _paths(file, str(file))
    if len(paths) < nodes:
        fix = "lower it, or build a larger tree with `python -m experiments.build_tree nodes=...`"
        raise InputError("drafter.tree", expected=f"at most the {len(paths)} paths of {file}", got=nodes, fix=fix)
    return Topology.of(paths[:nodes], str(file))


def guessed_accuracies(heads: int) -> list[list[float]]:
    """Return made-up accuracies [head][rank], used until `build_tree` has measured. They fall from head to head and
    from candidate to candidate."""
    return [[0.4 * 0.7**head * 0.4**rank for rank in range(GUESSED_RANKS)] for head in range(heads)]


def write_tree(file: Path, comment: str, figures: Mapping[str, Any]) -> None:
    """Write a tree file: `comment` in its first line, then the figures, which include `paths`."""
    body = yaml.safe_dump(dict(figures), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    write_text(file, f"# {comment}\n{body}")


def _paths(file: Path, what: str) -> list[Any]:
    expected = "a YAML file with index paths"
    try:
        data = read_yaml(file)
    except (OSError, ValueError) as error:
        why = str(error).replace("\n", " ")
        raise InputError(what, expected=expected, got=f"{str(file)!r} ({why})", fix="check the path") from error
    paths = data.get("paths") if isinstance(data, dict) else data
    if not isinstance(paths, list):
        raise InputError(what, expected=expected, got=f"no `paths` in {str(file)!r}", fix="run experiments.build_tree")
    return paths
