"""Sort texts into a corpus that drafter=retrieval and drafter=suffix look up.

python -m experiments.build_corpus folder=corpus data=data/text
python -m experiments.build_corpus folder=corpus 'data=[manual.txt,data/text]' target=hf target.name=Qwen/Qwen3-0.6B
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from drafters.suffix.corpus import Corpus, tokenizer_hash
from drafters.suffix.sources import texts_of, tokenizer_of
from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.settings import typed
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.files.durable import write_json
from specdec.model.target import TargetModel
from specdec.runs.log import provenance


@dataclass
class Options:
    """Options as in conf/build_corpus.yaml."""

    folder: str
    data: str | list[str]


@hydra.main(config_path=CONF, config_name="build_corpus", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    options = typed(cfg, Options)
    sources = [options.data] if isinstance(options.data, str) else options.data
    target: TargetModel = instantiate(cfg.target)
    tokenizer, folder = tokenizer_hash(tokenizer_of(target)), Path(options.folder).absolute()
    begun = time.perf_counter()
    corpus = Corpus.of(text for source in sources for text in texts_of(Path(source), target))
    folder.parent.mkdir(parents=True, exist_ok=True)
    corpus.write(folder, tokenizer, target.name)
    seconds, size = time.perf_counter() - begun, sum(file.stat().st_size for file in folder.iterdir())
    run = Path(HydraConfig.get().runtime.output_dir)
    figures = {"tokens": len(corpus), "bytes": size, "seconds": round(seconds, 1)}
    write_json(run / "summary.json", figures)
    write_json(run / "provenance.json", provenance())
    stdout.print(f"{folder}: {len(corpus):,} tokens, {size / 1e6:,.1f} MB, sorted in {seconds:.1f} s")


if __name__ == "__main__":
    launch(main)
