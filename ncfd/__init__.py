"""Compare and match distributions through their characteristic functions."""

__version__ = "0.1.0"
