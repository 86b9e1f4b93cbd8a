"""The benchmark: SARM2, SARM2 without each of its parts, and other ways to score progress, side by side.

Every contender is trained on the same episodes and the same frozen embeddings, with the same optimiser,
batch, noise and number of windows, from several seeds, and measured on the same fresh episodes.
"""
