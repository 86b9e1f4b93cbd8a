"""Episodes on disk and on robots: LeRobot datasets, the recorder, and the Meta-World robot."""
