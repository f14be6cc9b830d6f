"""Checks that weights are finite and that token ids are numbers."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from transformers import PreTrainedModel

from specdec.errors import InputError


def require_finite_weights(model: nn.Module, name: str, option: str) -> None:
    """Read every weight once.

    Raises:
        InputError: names the first weight with NaN or infinity.
    """
    for key, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.numel() == 0:
            continue
        values = weight.detach() if weight.element_size() > 1 else weight.detach().float()  # 8-bit: no `aminmax`
        low, high = torch.aminmax(values)  # both are NaN if any value is
        if not torch.isfinite(torch.stack([low, high])).all():
            raise InputError(
                option, expected="finite weights", got=f"{name!r}, whose {key} holds NaN or infinity",
                fix="download it again, or load it in a wider dtype (float32)",
            )  # fmt: skip


def require_eos_ids(model: PreTrainedModel, name: str, option: str) -> None:
    """Check the EOS token ids of the configs. Warn of ids that are outside the vocabulary.

    Raises:
        InputError: one is no whole number.
    """
    text = model.config.get_text_config()
    for file, config in (("generation_config.json", model.generation_config), ("config.json", text)):
        ids = getattr(config, "eos_token_id", None)
        for token in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if type(token) is not int:
                raise InputError(
                    option, expected="whole numbers as EOS token ids", got=f"{name!r}, whose {file} says {ids!r}",
                    fix=f"mend eos_token_id in {file}",
                )  # fmt: skip
            if not 0 <= token < text.vocab_size:
                line = f"{name}: {file} names the EOS id {token}, which is none of its {text.vocab_size:,} tokens"
                warnings.warn(f"{line} and ends no text", stacklevel=5)
