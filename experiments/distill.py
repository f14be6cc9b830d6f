"""A small draft model for any target: some of its layers, distilled on its text. `experiments.train` does the work.

python -m experiments.distill data=data/smollm2 recipe.layers=[0,1,28,29] recipe.vocabulary=8000
accelerate launch --num_processes 8 -m experiments.distill target=hf target.name=... data=...
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from experiments import train
from experiments.common.entry import CONF, launch
from experiments.common.task import Task


@hydra.main(config_path=CONF, config_name="distill", version_base="1.3")
@Task
def main(cfg: DictConfig) -> float | None:
    return train.run(cfg)


if __name__ == "__main__":
    launch(main)
