"""Prompts: built-in sets, files and datasets, and the conversations they hold.

sets.py            load prompts, and encode them with the chat template
conversations.py   parse the rows of prompt files: encodings, kinds of rows
"""
