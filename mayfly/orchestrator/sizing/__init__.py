"""Which size a build gets, and why: what it declares, what its repo's past says, what is usual.

`decide` is the whole policy, pure; `explain` puts a decision into words; `records` asks the store
of metrics for the past and writes down what comes to pass. `docs/sizing.md` is the long form.
"""

from mayfly.orchestrator.sizing.decide import Decision, decide

__all__ = ["Decision", "decide"]
