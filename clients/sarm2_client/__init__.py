"""The robot's side of sarm2: stream frames, get dense progress rewards back."""
