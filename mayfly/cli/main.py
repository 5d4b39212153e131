"""`mayfly`: one place where every error becomes one line and an exit status.

`--version`, `build` and `bake` are answered without the command framework: the first must be
quick, the others pass their arguments on untouched. All else is in `app.py`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from mayfly import __version__
from mayfly.cli.output import complain, flush, reader_has_gone, to_nobody
from mayfly.errors import Cancelled, MayflyError, UsageError


def main() -> None:
    """The program `mayfly`. Raises SystemExit with the documented exit status."""
    raise SystemExit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Do what the arguments say; return the exit status. `--debug` in front shows tracebacks."""
    words = list(argv)
    debug = words[:1] == ["--debug"]
    if debug:
        del words[0]
    return guarded(lambda: _dispatch(words), debug=debug)


def guarded(work: Callable[[], int], *, debug: bool = False) -> int:
    """What `work` returns, or the exit status of the error that it ends with.

    A `MayflyError` is printed as one line (a `ConfigError` as one for each fault). Anything
    unexpected becomes status 70 and one line that names the file with the traceback; with `debug`
    it is shown instead.
    """
    try:
        try:
            return work()
        finally:
            flush(sys.stdout)
    except MayflyError as error:
        if debug:
            traceback.print_exc()
        complain(error)
        return error.exit_status
    except KeyboardInterrupt:
        return Cancelled.exit_status
    except BrokenPipeError:  # whoever read our output has seen enough
        to_nobody(sys.stdout)
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            complain(_unexpected(error))
        return MayflyError.exit_status


def _dispatch(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"mayfly {__version__}")
        return 0
    if words[:1] in (["build"], ["bake"]):
        from mayfly.cli import build

        return build.run(words[0], words[1:])
    return _framework(words)


def _framework(words: list[str]) -> int:
    from typer.exceptions import Abort, Exit, TyperException

    from mayfly.cli.app import app

    try:
        status = app(words or ["--help"], prog_name="mayfly", standalone_mode=False)
    except Exit as leaving:
        return leaving.exit_code
    except Abort:
        return Cancelled.exit_status
    except SystemExit as answer:  # its own to a broken pipe, whosever that is
        gone = BrokenPipeError() if reader_has_gone(sys.stdout) else answer.__context__
        raise gone or answer from None
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "mayfly"
        message = error.format_message().rstrip(".")
        raise UsageError(message, hint=f"see `{command} --help`") from None
    return status if isinstance(status, int) else 0


def _unexpected(error: Exception) -> MayflyError:
    """A fault of Mayfly's own: the traceback goes to a file that a report can carry."""
    kind = type(error).__name__
    try:
        handle, path = tempfile.mkstemp(prefix="mayfly-error-", suffix=".log")
        with os.fdopen(handle, "w") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return MayflyError(f"internal error ({kind})", hint="run `mayfly --debug …` to see it")
    return MayflyError(f"internal error ({kind})", hint=f"report it with {path}")


if __name__ == "__main__":
    main()
