"""SPIRAL beside its controls: the runs, the bars they are held against, and one table of all."""
