"""Fixtures that several rooms use."""

from tests.serving import serving
from tests.stack_fixture import stack

__all__ = ["serving", "stack"]
