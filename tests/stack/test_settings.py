"""The programs read the configuration that `up` was given, without its secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mayfly import users
from mayfly.config import Config, load
from mayfly.stack import services, settings

CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "ladder": {"ladder": {"t-1": {"cpu": 1, "memory_gb": 1, "disk_gb": 4}}},
    "lists": {"network": {"resolvers": ["10.0.0.1"], "allow": ["10.0.0.0/8", "192.0.2.0/24"]}},
    "paths": {"golden": {"site_certificates": ['/etc/a "b"\\c.crt']}},
    "numbers": {"pool": {"cpu_overcommit": 1.5}, "lease": {"heartbeat_s": 0.5}},
    "forges": {
        "trust": {"branches": ["release/*"]},
        "oidc": {
            "git-1": {
                "kind": "forgejo",
                "issuer": "https://git.example/api/actions",
                "repos": ["a/*"],
                "default_branches": {"a/b": "trunk"},
                "claims": {"repo": "r"},
            }
        },
    },
    "unicode": {"s3": {"region": "ünïcode \x01"}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    config = Config.model_validate({**CONFIGS[name], "state": tmp_path})
    users.make_folders(config.state)
    path = settings.write(config)
    assert load({"MAYFLY_CONFIG": str(path)}) == config


def test_no_secret_is_in_it(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "state": tmp_path,
            "s3": {"access_key": "AKIA", "secret_key": "hush"},
            "metrics": {"url": "ws://db:8000", "password": "hush"},
            "woodpecker": {"url": "https://ci.example", "token": "hush"},
        }
    )
    users.make_folders(config.state)
    text = settings.write(config).read_text()
    table = services.table(config, None, settings.file(config))
    (orchestrator,) = (each for each in table if each.name == "orchestrator")
    told = load({**orchestrator.env, "MAYFLY_CONFIG": str(settings.file(config))})
    assert (told.metrics.password, told.woodpecker.token) == ("hush", "hush")
    assert "hush" not in text
    assert "AKIA" not in text
