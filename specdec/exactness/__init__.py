"""Proofs that text keeps the target's distribution: of acceptance rules, and of drafters.

cases.py     distributions p and q in which rules have gone wrong
rules.py     a rule on every kind of tree it declares itself exact for
texts.py     every text that the decoding loop can write, with its probability
drafters.py  a drafter on a target of a few tokens
finding.py   the result of one check
"""
