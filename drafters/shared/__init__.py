"""Parts that several drafters use.

estimates.py   estimates how often a drafted node is right, learnt while drafting
trained.py     saves and loads trained parts
shipped.py     finds the trained drafters that come with the repository
"""
