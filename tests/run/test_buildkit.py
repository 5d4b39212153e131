"""`mayfly run` in an image, with a real BuildKit, buildx and registry; no VM."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mayfly import flow
from mayfly.build import pair, ssh
from mayfly.config import Config
from mayfly.model import Outcome
from mayfly.run import request, story
from tests.build.fake_runner import fake_runner, pair_of
from tests.farm.conftest import busybox as busybox
from tests.farm.elsewhere import USER, Elsewhere, elsewhere
from tests.flow.fake_farm import FakeFarm
from tests.flow.test_elsewhere import buildkit

pytestmark = pytest.mark.services

BOX = "images/team/box:1"
SCRIPT = """\
cat src/data.txt; ls -a; id -u; echo "$GIVEN$EMPTY"; env | grep -c MAYFLY_; echo oops >&2
mkdir -p out/deep; echo made > out/deep/a.xml
ln -f out/deep/a.xml out/b.xml; ln -s /etc/passwd out/link
exit 37
"""


def configuration(there: Elsewhere) -> Config:
    registry = {
        "kind": "external",
        "images": f"{there.host}/acme",
        "ca": f"{there.folder}/ca.crt",
        "username": USER,
        "password_file": f"{there.folder}/password",
    }
    return Config.model_validate({"registry": registry})


async def test_a_command_in_an_image_and_what_comes_back(
    tmp_path: Path, busybox: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a BuildKit without a VM needs root")
    for name in ("there", "box", "here/src", "here/.git"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(busybox, tmp_path / "box/busybox")
    (tmp_path / "box/Dockerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
    )
    here = tmp_path / "here"
    (here / "src/data.txt").write_text("data\n")
    (here / ".git/config").write_text("password")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    key, lines = ssh.new_key(), list[str]()
    with elsewhere(tmp_path / "there") as there, pytest.MonkeyPatch.context() as patch:
        config = configuration(there)
        patch.setattr(pair, "new", lambda: pair_of(key))

        async def run(*command: str, **options: Any) -> story.Ended:
            asked = request.Options(repo="team/box", image=BOX, **options)
            wanted = request.prepare(command, asked, config, environ, here)
            return await story.run(wanted, farm, config, environ, lines.append)

        with buildkit(there, tmp_path) as socket:
            async with fake_runner(ssh.public_line(key), socket) as runner, asyncio.timeout(120):
                farm = FakeFarm(runner)
                words = ["-t", BOX, "--push", "--mayfly-repo", "team/box", "--progress=plain"]
                made = flow.prepare([*words, str(tmp_path / "box")], config, environ, tmp_path)
                built = await flow.build(made, farm, config, print)
                assert built.outcome is Outcome.SUCCEEDED, farm.log.decode()
                capfdbinary.readouterr()

                farm = FakeFarm(runner)
                ended = await run(
                    "sh", "-c", SCRIPT, artifacts=["out"], env=["GIVEN=a 'b", "EMPTY="]
                )
                said = capfdbinary.readouterr()
                assert ended.exit_status == 37, said
                assert said.out == b"data\n.\n..\nsrc\n0\na 'b\n0\n"
                assert said.err == b"oops\n", "nothing of BuildKit's"
                for name in ("out/deep/a.xml", "out/b.xml"):
                    assert (here / name).read_text() == "made\n"
                assert lines[2:] == ["warning: refused 'out/link': it is no plain file"]
                assert sorted(farm.log.splitlines()) == sorted((said.out + said.err).splitlines())

                again = await run("sh", "-c", SCRIPT + "exit 0")
                assert again.exit_status == 37, "it is no step from a cache"
                assert capfdbinary.readouterr().err == b"oops\n"
