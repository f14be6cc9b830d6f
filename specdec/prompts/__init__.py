"""Prompts: built-in sets, files and datasets, and the conversations they hold.

sets.py            where prompts come from, and the chat template around them
conversations.py   rows of prompt files as they come: encodings, kinds of rows, ids
"""
