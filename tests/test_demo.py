"""What `make demo` prints works for a client of this machine, and holds no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mayfly import demo
from tests.stack_fixture import Stack, oci_image


@pytest.mark.services
def test_what_is_printed_pulls_the_image(
    stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest, _ = oci_image(tmp_path / "oci")
    stack.skopeo(
        *("copy", "--dest-cert-dir", stack.cert_dir),
        *("--authfile", str(stack.config.state / "admin.auth.json")),
        *(f"oci:{tmp_path / 'oci'}:t", f"docker://{stack.address}/{demo.IMAGE}:t"),
    )
    inspect, copy = demo.skopeo(stack.config, digest)
    assert json.loads(stack.skopeo(*inspect[1:]).stdout)["Digest"] == digest
    demo.pull(stack.config, digest, tmp_path)
    assert (tmp_path / demo.PULLED / "manifest.json").exists()
    said = capsys.readouterr().out
    assert f"skopeo inspect --cert-dir {stack.cert_dir}" in said
    assert f"skopeo copy --src-cert-dir {stack.cert_dir}" in said
    assert stack.admin_token not in " ".join((said, *inspect, *copy))
