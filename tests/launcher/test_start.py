"""What the plugin has loaded when it asks for its lease: the rest comes while the VM is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mayfly.errors import Denied

LATER = ("aiohttp", "asyncssh", "httpx", "rich", "typer", "fastapi", "boto3", "surrealdb", "nickel")
SCRIPT = """
import os, sys
from mayfly import client
from mayfly.launcher import main
def post(self, path, headers, body):
    print(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
    sys.stdout.flush()
    os._exit(0)
client.Client._post = post
main.run(os.environ)
"""


def test_what_comes_after_the_lease_is_loaded_after_it(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    settings = {"REPO": "images/team/app", "URL": "https://127.0.0.1:9", "TOKEN": "t"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={"CI_REPO": "team/app", "CI_COMMIT_REF": "refs/heads/main", "PLUGIN_DRY_RUN": "true",
             **{f"PLUGIN_{name}": value for name, value in settings.items()}},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert "mayfly" in done.stdout.split(), done.stderr
    assert not set(LATER) & set(done.stdout.split())


def test_who_names_no_farm_is_told_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    done = subprocess.run(
        [sys.executable, "-c", "from mayfly.launcher.main import main; main()"],
        cwd=tmp_path,
        env={
            "PLUGIN_REPO": "images/team/app",
            "CI_REPO": "team/app",
            "MAYFLY_STATE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == Denied.exit_status, done.stdout + done.stderr
    assert "settings `url` and `token:" in done.stdout + done.stderr
