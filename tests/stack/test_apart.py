"""What a program in a process of its own tells is heard, whatever ends it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.stack.apart import hear, told

NAME = "the program"


def script(*lines: str) -> list[str]:
    say = "import json, os, sys, time, signal\ndef say(**m): print(json.dumps(m), flush=True)\n"
    return [sys.executable, "-c", say + "\n".join(lines)]


def heard(*lines: str, stays: bool = False) -> tuple[object, list[str]]:
    said: list[str] = []
    last = hear(script(*lines), '"given"', said.append, name=NAME, stays=stays, hint="look")
    return last, said


def test_progress_comes_line_by_line_and_then_the_last_word() -> None:
    last, said = heard(
        "say(progress=json.load(sys.stdin))", "print('a library says this')", "say(changed=True)"
    )
    assert last == {"changed": True}
    assert said == ["given", "a library says this"]


def test_an_error_is_the_one_that_was_told() -> None:
    error = MachineUnfit("no room", hint="make some")
    with pytest.raises(MachineUnfit, match=r"^no room - make some$"):
        heard(f"say(error={told(error)!r})", "sys.exit(21)")


@pytest.mark.parametrize("line", ["sys.exit(3)", "sys.stdin.close(); os.close(1); sys.exit(3)"])
def test_an_end_without_a_last_word_is_an_error_of_one_line(line: str) -> None:
    with pytest.raises(InfrastructureError, match=r"^the program ended .* \(exit 3\) - look$"):
        heard(line)


def test_what_ends_before_it_was_given_anything_is_no_other_error() -> None:
    with pytest.raises(InfrastructureError, match=r"exit 0\)"):
        hear(["/bin/true"], "x" * 1_000_000, print, name=NAME)


def test_what_stays_runs_on_and_what_does_not_is_waited_for(tmp_path: Path) -> None:
    pid, _ = heard("say(pid=os.getpid())", "sys.stdout.close(); time.sleep(60)", stays=True)
    assert isinstance(pid, dict)
    os.kill(pid["pid"], 15)
    file = tmp_path / "over"
    heard("say(ready=True)", "time.sleep(0.3)", f"open({str(file)!r}, 'w')")
    assert file.exists()


def test_an_interrupt_ends_it_and_leaves_it_time_to_clean_up(tmp_path: Path) -> None:
    file = tmp_path / "clean"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hear(
            script(
                f"def clean(*_): open({str(file)!r}, 'w').write(json.dumps(1)); sys.exit(0)",
                "signal.signal(signal.SIGTERM, clean)",
                "say(progress='half')",
                "time.sleep(60)",
            ),
            "",
            interrupt,
            name=NAME,
        )
    assert json.loads(file.read_text()) == 1
