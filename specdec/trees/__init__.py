"""Trees of tokens, without any model.

tree.py       TokenTree: tokens and parents of a batch; mask, depth and paths from them
topology.py   static trees from index paths; the best tree for measured accuracies
files.py      static trees on disk
by_child.py   the best tree if acceptances are by child number
schedules.py  prescribed rates of acceptance, by depth and rank
"""
