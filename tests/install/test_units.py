"""The table of programs as units: nothing of it is lost, and systemd takes it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.install import running, units
from mayfly.install.places import Places
from mayfly.stack import ServiceStatus
from mayfly.stack.services import Probe, Service

PLACES = Places(Path("/trial"))
PYTHON = Path("/usr/bin/python3")

EDGE = Service(
    name="edge",
    argv=("/bin/true", "-m", "mayfly.edge"),
    uid=60902,
    cwd=Path("/"),
    env={"SECRET": 'a "b" \\ $c %d', "MAYFLY_CONFIG": "/x"},
    needs=(Path("/opt/with space"),),
    ready=Probe("127.0.0.1:5000", "/v2/", frozenset({401}), tls=True),
    listen="127.0.0.1:5000",
)
HOST = Service(
    "host", ("/bin/true",), 0, Path("/"), ready=Probe(Path("/run/x.sock"), line="{}"), stop_s=30
)
ONCE = Service("bucket", ("/bin/true",), 60903, Path("/"), once=True)
TABLE = (ONCE, HOST, EDGE)


def lines(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_every_program_runs_as_the_table_says_and_after_those_before_it() -> None:
    texts = units.render(TABLE, PYTHON, PLACES)
    for at, service in enumerate(TABLE):
        unit = lines(texts[units.name(service.name)])
        assert shlex.split(unit["ExecStart"].replace("%%", "%")) == list(service.command)
        assert unit["WorkingDirectory"] == str(service.cwd)
        assert unit["TimeoutStopSec"] == f"{service.stop_s:g}"
        before = {units.name(each.name) for each in TABLE[:at]}
        assert before <= set(unit["After"].split())
        assert ("ExecStartPost" in unit) is (service.ready is not None)
        assert unit["Type"] == ("oneshot" if service.once else "exec")
        assert unit.get("Restart") == (None if service.once else "always")
        assert unit["Slice"] == units.SLICE
    wanted = set(lines(texts[units.TARGET])["Wants"].split())
    assert wanted == texts.keys() - {units.TARGET, units.SLICE}


def test_an_end_of_the_host_ends_none_of_its_children() -> None:
    texts = units.render(TABLE, PYTHON, PLACES)
    assert lines(texts["mayfly-host.service"])["KillMode"] == "process"
    assert lines(texts["mayfly-edge.service"])["KillMode"] == "mixed"


def test_the_socket_outlives_its_program() -> None:
    texts = units.render(TABLE, PYTHON, PLACES)
    assert lines(texts["mayfly-edge.socket"])["ListenStream"] == EDGE.listen
    assert lines(texts["mayfly-edge.service"])["Requires"] == "mayfly-edge.socket"
    assert 'MAYFLY_EDGE_FD="3"' in units.environments(TABLE)["edge"].splitlines()


def test_no_variable_is_in_a_unit_which_everybody_may_read() -> None:
    assert not any("$c" in text for text in units.render(TABLE, PYTHON, PLACES).values())
    assert 'SECRET="a \\"b\\" \\\\ $c %d"' in units.environments(TABLE)["edge"].splitlines()


def test_a_unit_changes_exactly_when_its_program_is_to_be_started_anew() -> None:
    before = units.render(TABLE, PYTHON, PLACES)
    newer = Service("host", ("/bin/true",), 0, Path("/"), version="2", ready=HOST.ready, stop_s=30)
    after = units.render((ONCE, newer, EDGE), PYTHON, PLACES)
    assert {name for name in before if before[name] != after[name]} == {"mayfly-host.service"}


def test_probes_come_back_as_they_were() -> None:
    found = json.loads(units.probes(TABLE))
    assert {name: units.probe(data) for name, data in found.items()} == {
        "edge": EDGE.ready,
        "host": HOST.ready,
    }


def test_what_systemd_shows_is_what_runs() -> None:
    shown = """\
Type=exec
Restart=always
MainPID=212
NRestarts=1
Id=mayfly-registry.service
ActiveState=active

Type=oneshot
MainPID=0
NRestarts=0
Id=mayfly-bucket.service
ActiveState=active

Type=exec
MainPID=0
NRestarts=0
Id=mayfly-edge.service
ActiveState=failed
"""
    assert list(running.programs(shown)) == [
        ServiceStatus("registry", 212, alive=True, restarts=1),
        ServiceStatus("edge", 0, alive=False, restarts=0),
    ]
    assert list(running.programs("")) == []


@given(
    st.lists(st.text(st.characters(min_codepoint=32, exclude_categories=["Cc", "Cs"])), min_size=1)
)
def test_a_command_line_is_read_as_it_was_meant(words: list[str]) -> None:
    line = units.command(words)
    assert "\n" not in line
    unescaped = line.replace("%%", "%").replace("$$", "$")
    if not any(set(word) & set("'$%") for word in words):
        assert shlex.split(unescaped) == words


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="scripts/setup-tests installs it")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    texts = units.render(TABLE, PYTHON, Places(tmp_path))
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    done = verify(tmp_path)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
    (tmp_path / "mayfly-host.service").write_text("[Service]\nExecStat=/bin/true\n")
    assert verify(tmp_path).returncode != 0, "it would have said so"


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    """systemd's own word on all units in a folder."""
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(folder.glob("mayfly*"))],
        capture_output=True,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"},
        check=False,
    )
