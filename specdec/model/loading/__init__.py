"""From a checkpoint to a model in memory: weights, adapters, tokenizers, and one line for every fault."""
