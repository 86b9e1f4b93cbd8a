"""The service: robots stream camera frames in, calibrated progress rewards stream out."""

__version__ = "0.1.0"
