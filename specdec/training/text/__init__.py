"""Text of the target's own, which drafters learn from.

store.py          answers on disk, in shards
self_distill.py   let the target answer prompts
refill.py         batches in which finished rows are replaced at once
self_written.py   prompts that the target writes itself
passages.py       questions and summaries over passages of its answers
archive.py        text packed into one file, and back
features.py       the target's hidden states over a text
"""
