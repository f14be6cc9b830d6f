"""The target's own text, which drafters are trained on.

store.py          read text from disk, in shards
shard.py          write a shard
self_distill.py   let the target answer prompts
refill.py         generate in batches whose finished rows are replaced at once
self_written.py   prompts that the target writes itself
passages.py       prompts with long inputs, made of its answers
archive.py        pack text into one file, and unpack it
features.py       compute the target's hidden states over a text
"""
