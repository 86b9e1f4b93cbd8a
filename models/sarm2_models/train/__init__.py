"""Training: from recorded episodes to a bundle, in stages that can be resumed.

`run` goes through the stages in order: record (`plan`), the check of the labels (`label_check`), index
(`corpus`), image tower (`tokenizer`, `tower`), embedding (`embed`), heads (`windows`, `heads`), calibration
(`calibrate`), the ladder of what is gained by seeing (`ladder`), the report (`report`). `evaluation` measures
a finished bundle on fresh episodes.
"""
