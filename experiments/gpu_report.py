"""Measure what targets cost on this machine's GPU, and judge it by the project's goals: one table, in ten minutes.

python -m experiments.gpu_report                                   # on a GPU: shapes of random weights, in bf16
python -m experiments.gpu_report --shapes tiny --rounds 2 --new 16  # on a CPU: every row, not judged
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from drafters.oracle import Oracle
from specdec.decoding.protocols import Drafter
from specdec.errors import InputError
from specdec.hardware.random_weights import load_random
from specdec.measure.gpu_report import FLOORS, Row, attention, copy_rate, costs, gains
from specdec.model.attention.registry import by_speed
from specdec.model.load import resolve_device
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

SHAPES = ["llama3_8b", "qwen3_0_6b", "smollm2_135m"]
LENGTHS = [1024, 4096, 16384, 65536]
CHAIN = 7  # drafted nodes: a verify of 8


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_report", description=__doc__)
    parser.add_argument("--shapes", nargs="+", help="configs: kept ones, hub ids or folders")
    parser.add_argument("--layers", type=int, help="layers of each shape, if not all")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto")
    parser.add_argument("--prefix", type=int, default=1024, help="tokens before a forward")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each time")
    parser.add_argument("--new", type=int, default=128, help="tokens generated in the loop")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_report.json"), help="file for the numbers")
    o = parser.parse_args(arguments)
    try:
        for name, least in (("rounds", 1), ("new", 8), ("prefix", 1)):
            if getattr(o, name) < least:
                raise InputError(f"--{name}", expected=f"{least} or more", got=getattr(o, name), fix="raise it")
        device = resolve_device(o.device)
        sections = report(device, o.shapes or (SHAPES if device.type == "cuda" else ["tiny"]), o)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    where = machine(device)
    print(page(where, sections, judged=device.type == "cuda"))
    o.out.parent.mkdir(parents=True, exist_ok=True)
    rows = {title: [vars(row) | {"met": row.met} for row in found] for title, found in sections.items()}
    o.out.write_text(json.dumps({"machine": where, "judged": device.type == "cuda", "rows": rows}, indent=1), "utf-8")
    print(f"numbers: {o.out}")


def report(device: torch.device, shapes: Sequence[str], o: argparse.Namespace) -> dict[str, list[Row]]:
    """Measure everything; one section for the machine and one per shape."""
    cuda = device.type == "cuda"
    mib = 4096 if cuda else 64
    bandwidth = copy_rate(device, mib, o.rounds)
    sections = {"machine": [bandwidth]}
    for shape in shapes:
        target = load_random(shape, layers=o.layers, device=str(device))
        kernels = by_speed()[:2] if cuda else [target.kernel.name, "dense"]
        lengths = LENGTHS if cuda else LENGTHS[:1]
        drafters: dict[float, Drafter] = {tokens: Oracle(CHAIN, tokens_per_step=tokens) for tokens in FLOORS}
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(target.vocab_size, (64,), generator=generator).tolist()
        sections[f"{target.name}, {str(target.dtype).removeprefix('torch.')}, kernel {target.kernel.name}"] = [
            *costs(target, bandwidth.value, o.prefix, o.rounds, mib),
            *attention(target, kernels, lengths, o.rounds),
            *gains(TreeAttention(target), drafters, Exact(), prompt, o.new),
        ]
        del target, drafters
        if cuda:
            torch.cuda.empty_cache()
    return sections


def machine(device: torch.device) -> str:
    """Return the card's name and the versions of what computes."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = [
        f"{name} {found}" for name in ("torch", "transformers", "triton", "flash-attn") if (found := _version(name))
    ]
    return ", ".join([card, *versions])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def page(where: str, sections: dict[str, list[Row]], judged: bool) -> str:
    """Return the table as Markdown. Without a GPU no row is judged."""
    lines = [where, "", "| measured | value | goal | met |", "| --- | --- | --- | --- |"]
    for title, rows in sections.items():
        lines.append(f"| **{title}** | | | |")
        for row in rows:
            goal = "" if row.goal is None else f"{'≥' if row.least else '≤'} {row.goal:g} {row.unit}".rstrip()
            met = "" if row.met is None else ("yes" if row.met else "no") if judged else "not judged"
            lines.append(f"| {row.name} | {row.value:,.3g} {row.unit}".rstrip() + f" | {goal} | {met} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
