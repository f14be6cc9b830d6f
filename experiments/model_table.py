"""Write docs/models.md: which causal-LM families of transformers work, built with tiny random weights.

python -m experiments.model_table                 # all families; writes docs/models.md and family_tests/sides.json
python -m experiments.model_table llama mamba     # prints these only
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

from experiments.families.family_check import NOT_BUILT, REFUSED, WORKS, Finding, check_family
from experiments.families.tiny_models import causal_lm_types

ROOT = Path(__file__).parents[1]
TABLE, SIDES = ROOT / "docs" / "models.md", ROOT / "family_tests" / "sides.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.model_table", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types, such as llama; none: all, and the page is written")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    wanted = options.types or causal_lm_types()
    found: dict[str, Finding] = {}
    for number, model_type in enumerate(wanted, start=1):
        found[model_type] = finding = check_family(model_type)
        print(f"{number}/{len(wanted)} {model_type}: {finding.status}, {finding.how}", flush=True)
    if options.types:
        return
    TABLE.write_text(page(found), "utf-8")
    SIDES.parent.mkdir(parents=True, exist_ok=True)
    sides = {model_type: finding.status for model_type, finding in found.items()}
    SIDES.write_text(json.dumps(sides, indent=1) + "\n", "utf-8")
    print(f"wrote {TABLE} and {SIDES}")


def page(found: Mapping[str, Finding]) -> str:
    """Return the table as Markdown."""
    works = sum(finding.status == WORKS for finding in found.values())
    lines = [
        "# Models",
        "",
        f"`python -m experiments.model_table` wrote this page with transformers {transformers.__version__}. It builds",
        "every causal-LM type of transformers with tiny random weights, in fp32 on a CPU. A family *works* if",
        "its greedy text equals that of `model.generate`, token by token: alone and in a ragged batch, with",
        "n-gram drafts and with branching trees most of whose nodes are wrong. `make test-families` fails if",
        "the status of a family changes.",
        "",
        f"{works} of {len(found)} types work.",
        "",
        "- **fused**: one call computes all layers on a CPU.",
        "- **modules**: the model's own modules run, with tree attention.",
        f"- **{REFUSED}**: `TargetModel` refuses the model when it is loaded, with the reason in one line.",
        f"- **{NOT_BUILT}**: transformers cannot build or run the shrunk model here, for the reason given.",
        "",
        "| type | status | how, or why not |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {model_type} | {finding.status} | {finding.how.replace('|', '/')} |"
        for model_type, finding in found.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
