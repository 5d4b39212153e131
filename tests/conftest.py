"""Fixtures that several rooms use, and how property tests run."""

from hypothesis import HealthCheck, settings

from tests.serving import serving
from tests.stack_fixture import stack

__all__ = ["serving", "stack"]

# A busy machine is no finding: no test asserts a time, and so no example does.
settings.register_profile(
    "mayfly", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mayfly")
