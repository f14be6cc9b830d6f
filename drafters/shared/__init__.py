"""Parts that several drafters use.

estimates.py   how often a drafted node is right, learnt while drafting
trained.py     trained parts on disk
shipped.py     the trained drafters that come with the repository
"""
