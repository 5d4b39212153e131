"""Pushing an OCI layout to a registry, by skopeo."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from pathlib import Path

from mayfly.debian.process import run
from mayfly.errors import InfrastructureError, UsageError
from mayfly.registry.credentials import Login

_REFERENCE = re.compile(
    r"([a-z0-9.-]+(?::\d+)?)/([a-z0-9._/-]+)"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})"
)


def auth_file(registry: str, login: Login | None) -> str:
    """What skopeo reads credentials from."""
    if login is None:
        return json.dumps({"auths": {}})
    if login.identity:
        return json.dumps({"auths": {registry: {"identitytoken": login.identity}}})
    secret = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
    return json.dumps({"auths": {registry: {"auth": secret}}})


def push(
    layout: Path, reference: str, *, ca_dir: Path | None, login: Login | None, tag: str = "latest"
) -> str:
    """Push what a layout has as `tag` to `reference` (`host/name:tag` or `@sha256:…`); its digest.

    An index is sent alone: the images it names are in that repository already.
    `ca_dir` holds the registry's CA as `*.crt`; None where the system trusts it. `login` is
    handed to skopeo in a file only it can read. What is there already is not sent again. Raises
    `UsageError` for a malformed reference, `MachineUnfit` without skopeo, `InfrastructureError`
    with skopeo's last words.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(f"{reference} is not host/name:tag or host/name@sha256:…")
    certificates = [] if ca_dir is None else ["--dest-cert-dir", str(ca_dir)]
    with tempfile.TemporaryDirectory(prefix="mayfly-push-") as folder:
        auth = Path(folder) / "auth.json"
        auth.touch(0o600)
        auth.write_text(auth_file(match[1], login))
        digest = Path(folder) / "digest"
        run(
            ["skopeo", "copy", "--quiet", "--preserve-digests", "--retry-times", "2",
             "--multi-arch", "index-only",
             "--authfile", auth, "--digestfile", digest,
             *certificates,
             f"oci:{layout}:{tag}", f"docker://{reference}"],
            what=f"pushing {reference}",
        )  # fmt: skip
        pushed = digest.read_text().strip()
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", pushed):
        raise InfrastructureError(f"pushing {reference}: skopeo named no digest")
    return pushed
