"""Proofs that acceptance rules and drafters keep the target's distribution.

cases.py        distributions p and q on which rules have failed before
enumeration.py  every random outcome of one step, with its probability
rules.py        a rule on every kind of tree that it declares itself exact for
texts.py        every text that the decoding loop can write, with its probability
drafters.py     a drafter on a target with a few tokens
synthetic.py    exact expected accepted lengths on random p and q
conformance.py  a growing family of cases for one rule, and its smallest counterexample
functions.py    rules as papers release them: functions of p, q, a draft and uniforms
faults.py       global random state, and verdicts that change
shapes.py       all small trees
transport.py    bounds by optimal transport
finding.py      the result of one check
"""
