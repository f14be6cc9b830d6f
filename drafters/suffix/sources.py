"""Find the corpus that a drafter looks up, and the texts that one is built from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from drafters.shared.shipped import WEIGHTS
from drafters.suffix.corpus import Corpus, tokenizer_hash
from specdec.errors import InputError
from specdec.files.checked import read_bounded
from specdec.files.home import cached
from specdec.model.target import TargetModel
from specdec.training.text.archive import read_archive
from specdec.training.text.store import TextStore

ARCHIVE = "text.xz"  # beside the shipped weights: the target's own text that they were trained on
FRESH = 1000  # tokens of a random corpus
MOST_FILE = 4 * 2**30  # largest file of plain text, in bytes


def open_corpus(name: str, target: TargetModel) -> Corpus:
    """Return a corpus for a target.

    Args:
        name: a folder of `experiments.build_corpus`; `auto` for the text that is shipped for the target, sorted when it
            is first used; `fresh` for random tokens, in tests and proofs.
        target: the model to draft for.

    Raises:
        InputError: no text is shipped for the target, or the folder is not its corpus.
    """
    if name == "fresh":
        rng = random.Random(0)
        return Corpus.of([[rng.randrange(target.vocab_size) for _ in range(FRESH)]])
    tokenizer = tokenizer_hash(tokenizer_of(target))
    if name != "auto":
        return Corpus.open(Path(name), tokenizer)
    archive = WEIGHTS / target.name / ARCHIVE
    if not archive.is_file():
        shipped = ", ".join(sorted(file.parent.name for file in WEIGHTS.glob(f"*/{ARCHIVE}")))
        fix = "build one with `python -m experiments.build_corpus target=... data=...`, and pass drafter.corpus=FOLDER"
        raise InputError(
            "drafter.corpus=auto", expected=f"a target with shipped text ({shipped})", got=target.name, fix=fix
        )

    def make(folder: Path) -> None:
        Corpus.of(texts_of(archive, target)).fill(folder, tokenizer, target.name)

    return Corpus.open(cached(f"corpus/{target.name}", make), tokenizer)


def texts_of(source: Path, target: TargetModel) -> Iterator[list[int]]:
    """Yield the token ids of every text of a source.

    Args:
        source: a folder of `experiments.self_distill`, a file written by its `export_to`, or a file of plain text.
        target: the model whose tokenizer encodes plain text.

    Raises:
        InputError: no such file or folder, or one of another target or encoding.
    """
    if source.is_dir():
        store = TextStore(source)
        yield from (store.tokens(text).tolist() for text in store.texts)
        return
    try:
        if source.suffix == ".xz":
            _, texts, ids = read_archive(source)
            yield from (ids[text.start : text.start + text.tokens].tolist() for text in texts)
        else:
            tokenizer, words = tokenizer_of(target), read_bounded(source, MOST_FILE).decode()
            yield tokenizer.encode(words, add_special_tokens=False, verbose=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "a folder of experiments.self_distill, a file of its export_to, or text in UTF-8"
        got = f"{source} ({str(error) or type(error).__name__})"
        raise InputError("data", expected=expected, got=got, fix="check the path") from error


def tokenizer_of(target: TargetModel) -> PreTrainedTokenizerBase:
    """Return a target's tokenizer.

    Raises:
        InputError: it was loaded without one.
    """
    if target.tokenizer is None:
        raise InputError(
            "drafter.corpus", expected="a target with a tokenizer", got=target.name, fix="load it with one"
        )
    return target.tokenizer
