"""Fixtures that several rooms use."""

from tests.stack_fixture import stack

__all__ = ["stack"]
