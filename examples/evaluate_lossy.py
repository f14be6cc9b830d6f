"""Evaluate a lossy acceptance rule with lm-evaluation-harness (`pip install -e ".[eval]"`).

python examples/evaluate_lossy.py smollm2_135m medusa typical gsm8k 20

A lossless rule needs no evaluation, because its text has the target's distribution. A lossy rule may cost accuracy. The
harness measures how much, compared with the lossless rule on the same questions.
"""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

import specdec


class SpeculativeModel(LM):
    """A drafter, a target and a rule as a model of the harness.

    Tasks that need log-likelihoods are refused, because drafting does not change the scores of given texts.

    Args:
        lm: drafter, target and rule.
        batch_size: number of texts generated at once.
    """

    def __init__(self, lm: specdec.SpeculativeLM, batch_size: int = 8) -> None:
        super().__init__()
        self._lm, self._batch_size = lm, batch_size

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for options, same in groupby(requests, key=lambda request: request.args[1]):  # a batch has one set of options
            prompts = [request.args[0] for request in same]
            stop = [options["until"]] if isinstance(options.get("until"), str) else options.get("until", [])
            for first in range(0, len(prompts), self._batch_size):
                made = self._lm.generate(
                    prompts[first : first + self._batch_size],
                    options.get("max_gen_toks", 256),
                    temperature=float(options.get("temperature") or 0.0),
                    stop=stop,
                    chat=False,
                )
                texts += [cut(text.text, stop) for text in made]
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("drafting does not change log-likelihoods: choose a task that generates texts")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError("drafting does not change log-likelihoods: choose a task that generates texts")


def cut(text: str, stop: list[str]) -> str:
    """Return the text before its first stop string, as the harness expects."""
    return text[: min((text.find(string) for string in stop if string in text), default=len(text))]


def main(model: str, drafter: str, rule: str, task: Any, limit: int) -> dict[str, Any]:
    """Print and return the task's figures with a lossy rule and with the lossless default.

    Args:
        model, drafter, rule: names as in `specdec.load`.
        task: name of a task, or a task object.
        limit: number of questions.
    """
    found = {}
    for acceptance in (rule, "exact"):
        lm = SpeculativeModel(specdec.load(model, drafter, acceptance=acceptance))
        results = simple_evaluate(lm, tasks=[task], limit=limit, bootstrap_iters=0, log_samples=False)
        found[acceptance] = results["results"]
        print(acceptance, found[acceptance])
    return found


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
