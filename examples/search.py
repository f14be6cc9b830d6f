"""Find the fastest drafted nodes, depth and kind of tree (static or adaptive) on this machine.

python examples/search.py target=smollm2_135m drafter=ngram prompts.limit=12 trials=30

Optuna's `study.optimize` runs over configs composed in one process. The target is loaded once, and a setting that is
hopeless after a few prompts is pruned. The command line accepts any option of experiments.bench.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import optuna
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.resources import timed
from experiments.common.settings import settings
from specdec.decoding.decoder import Decoder
from specdec.measure.worth import Sample, figures, samples
from specdec.model.target import TargetModel
from specdec.prompts.sets import PromptEncoder

STARTUP_TRIALS, WARMUP_PROMPTS = 4, 2  # trials, and prompts of a trial, before pruning begins


def suggested(trial: optuna.Trial) -> list[str]:
    """Return the overrides of a trial; change this to search other options."""
    nodes = trial.suggest_int("drafter.nodes", 1, 15)
    depth = trial.suggest_int("drafter.depth", 1, 10)
    tree = trial.suggest_categorical("tree", ["as_drafted", "adaptive"])
    return [f"drafter.nodes={nodes}", f"drafter.depth={depth}", f"tree={tree}"]


def measure(trial: optuna.Trial, cfg: DictConfig, target: TargetModel) -> float:
    """Return the speedup over all prompts. Reports it after each prompt, so that the pruner can stop the trial."""
    options = settings(cfg)
    drafter = instantiate(cfg.drafter)
    if options.tree == "adaptive":
        drafter = instantiate(cfg.adaptive)(drafter)
    encoder = PromptEncoder(target.tokenizer)
    prompts = [encoder.encode(prompt.turns[:1], []) for prompt in instantiate(cfg.prompts)]
    verifier, rule = instantiate(cfg.verifier, target=target), instantiate(cfg.acceptance)
    decoder = Decoder(drafter, verifier, rule, options.sampling(), options.stop_rule(target))
    found: list[Sample] = []
    with timed(target.device, options.exclusive, "examples/search.py"):
        for number, sample in enumerate(samples(prompts, decoder)):
            found.append(sample)
            trial.report(figures(found)["speedup"], number)
            if trial.should_prune():
                raise optuna.TrialPruned
    return figures(found)["speedup"]


def search(overrides: Sequence[str], trials: int) -> optuna.Study:
    """Run the study.

    Args:
        overrides: options of experiments.bench for all trials.
        trials: number of trials.
    """
    with initialize_config_dir(CONF, version_base="1.3"):
        target = instantiate(compose("bench", [*overrides]).target)

        def objective(trial: optuna.Trial) -> float:
            cfg = compose("bench", [*overrides, *suggested(trial)], return_hydra_config=False)
            return measure(trial, cfg, target)

        pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, WARMUP_PROMPTS)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner)
        study.optimize(objective, n_trials=trials)
    return study


def main() -> None:
    given = [argument for argument in sys.argv[1:] if not argument.startswith("trials=")]
    trials = next((int(a.partition("=")[2]) for a in sys.argv[1:] if a.startswith("trials=")), 20)
    study = search(given, trials)
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
    print(f"best of {len(study.trials)} trials ({pruned} pruned): {study.best_value:.2f}x")
    print(" ".join(f"{name}={value}" for name, value in study.best_params.items()))


if __name__ == "__main__":
    main()
