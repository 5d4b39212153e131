"""`python -m mayfly.golden`: make today's golden image; the configuration comes as JSON on stdin.

For `mayfly up`, which must be able to end it. Prints one line for each step, and the fault last.
"""

from __future__ import annotations

import signal
import sys

from mayfly import golden
from mayfly.config import Config
from mayfly.errors import MayflyError


def main() -> int:
    """0, or the exit status of the error that was printed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        golden.make(
            Config.model_validate_json(sys.stdin.read()), lambda line: print(line, flush=True)
        )
    except MayflyError as error:
        print(error, flush=True)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
