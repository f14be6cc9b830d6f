"""The target: any `transformers` causal language model, unmodified.

target.py         TargetModel: prefill, tree forward, hidden states
block.py          Block: the nodes of one forward
modules.py        run a block through the model's own modules
halves.py         run only the first layers, or only the others
cache.py          TreeCache: preallocated KV with a length per row; `keep(path)`
load.py           where models come from: a hub id, a folder, the embedded model, a tiny one
loading/          checkpoints: weights, adapters, tokenizers, and one line for each fault
proof/            compare a model with the stock model before it is used
attention/        tree attention, one file per kernel
runtime/          fused layers, fast products and captured graphs
kv_layout.py      which keys and values a model caches, and which its attention reads
rope.py           rotary factors that depend on a text's own length, row by row
layers.py         where a model's layers are; views that leave some out
students.py       smaller models made of a target's own layers
vocabularies.py   the tokens that target and draft model share
"""
