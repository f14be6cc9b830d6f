"""List the commands, or run one: python -m experiments [COMMAND [options ...]]."""

from __future__ import annotations

import ast
import runpy
import sys
from difflib import get_close_matches
from pathlib import Path

from experiments import RENAMED

USAGE = "python -m experiments.COMMAND [option=value ...]; --help shows a command's options"


def commands() -> dict[str, str]:
    """Return the first line of every entry point's docstring, by its name. Nothing is imported."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> None:
    """Run the command that the first argument names; without one, list all."""
    known = {name: line for name, line in commands().items() if name != "__main__"}
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        width = max(map(len, known))
        print(USAGE, *(f"  {name:<{width}}  {line}" for name, line in known.items()), sep="\n")
        return
    command = sys.argv.pop(1)
    if command not in known:
        near = get_close_matches(command, known, n=1, cutoff=0.6)
        unlike = f"did you mean {near[0]}?" if near else "check the spelling"
        fix = f"it is called {RENAMED[command]} now" if command in RENAMED else unlike
        print(f"error: command: expected one of {', '.join(known)}, got {command!r}; {fix}", file=sys.stderr)
        sys.exit(2)
    runpy.run_module(f"experiments.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
