"""Entry point of `buildkit-launcher`; the plugin itself comes with a later issue."""

import sys


def main() -> None:
    """Say on stderr, in one line, what to use until the plugin is there.

    Takes no input. Raises SystemExit(2), the exit code of `usage`.
    """
    sys.stderr.write(
        "buildkit-launcher: the Woodpecker plugin is not part of this version; "
        "use `mayfly build` in a step's commands\n"
    )
    raise SystemExit(2)
