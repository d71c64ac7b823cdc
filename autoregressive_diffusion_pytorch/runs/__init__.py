"""The folders of runs as they can be looked at, while they are trained and later.

Nothing here writes into a run, and nothing needs torch.
"""
