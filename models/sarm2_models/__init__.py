"""The SARM2 reward model: a frozen image encoder, a stage estimator and a mixture-of-experts value decoder.

Who knows what: `stage` and `value` are networks and know tensors; `reward_model` is built from a config and
scores windows; `predictor` knows episodes and numpy; `checkpoint` turns a model into a folder and back.
"""
