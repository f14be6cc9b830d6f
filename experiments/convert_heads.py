"""Convert Medusa heads from any published layout to the official one or vLLM's, and report on every tensor.

python -m experiments.convert_heads heads=FasterDecoding/medusa-vicuna-7b-v1.3 to=official output=heads
python -m experiments.convert_heads heads=heads to=vllm output=heads-vllm target=smollm2_135m
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from drafters.medusa.formats import HeadsFile, read_heads, write_official, write_vllm
from experiments.common.components import instantiate
from experiments.common.entry import CONF, stderr
from experiments.common.settings import typed
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.errors import InputError
from specdec.files.durable import replacing, write_json
from specdec.model.load import resolve_dtype
from specdec.model.target import TargetModel
from specdec.runs.provenance import provenance

SHOWN = 5  # tensors left out that are listed; a full model has hundreds


@dataclass
class Options:
    """Options as in conf/convert_heads.yaml."""

    heads: str
    to: str
    output: str
    dtype: str | None
    base_model: str | None


@hydra.main(config_path=CONF, config_name="convert_heads", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    output = Path(typed(cfg, Options).output)
    if cfg.to not in ("official", "vllm"):
        raise InputError("to", expected="official or vllm", got=repr(cfg.to), fix="choose one")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError("output", expected="an empty folder, or none", got=str(output), fix="choose another")
    source = read_heads(cfg.heads, "heads")
    dtype = source.heads.weight.dtype if cfg.dtype is None else resolve_dtype(cfg.dtype)
    if not isinstance(dtype, torch.dtype):
        raise InputError("dtype", expected="float16, bfloat16, float32 or null", got=cfg.dtype, fix="choose one")
    target: TargetModel | None = instantiate(cfg.target) if cfg.get("target") else None
    if target is not None:
        source.heads.to(target.device).require_fits(target, "heads")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with replacing(output.absolute()) as unfinished:
        if cfg.to == "vllm":
            written = write_vllm(source.heads, unfinished, target, dtype)
        else:
            base_model = cfg.base_model or source.base_model or (target.name if target is not None else "unknown")
            written = write_official(source.heads, unfinished, base_model, dtype)
    folder = Path(HydraConfig.get().runtime.output_dir)
    report = {"layout": source.layout, "mapped": dict(source.mapped), "left out": dict(source.dropped)}
    write_json(folder / "summary.json", {**report, "notes": source.notes, "written": list(written)})
    write_json(folder / "provenance.json", provenance())
    stdout.print(table(source, f"{cfg.heads} ({source.layout}) to {output} ({cfg.to}, {len(written)} tensors)"))
    for note in source.notes:
        stderr.print(f"note: {note}", soft_wrap=True, highlight=False)


def table(source: HeadsFile, title: str) -> Table:
    """Show every tensor of the heads, and the tensors left out."""
    out = Table(title=title)
    out.add_column("in the source", no_wrap=True)
    out.add_column("became")
    for key, place in source.mapped:
        out.add_row(key, place)
    out.add_section()
    for key, why in source.dropped[:SHOWN]:
        out.add_row(key, f"left out: {why}")
    if len(source.dropped) > SHOWN:
        out.add_row(f"and {len(source.dropped) - SHOWN} more", "left out (all in summary.json)")
    return out


if __name__ == "__main__":
    launch(main)
