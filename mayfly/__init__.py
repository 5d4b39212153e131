"""Mayfly: a build farm on machines you own. `flow.py` is the place to start reading."""

__version__ = "0.1.0"
