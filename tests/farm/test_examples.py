"""The examples, built as their READMEs say: cold, and then from cache in another fresh VM.

Bases are made from packages first, and unpacked in each VM that runs a step: too long without KVM
for `make test`, which builds the Python one (`test_build.py`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.farm.conftest import Farm, cached

pytestmark = [pytest.mark.vm, pytest.mark.services, pytest.mark.long, pytest.mark.timeout(3600)]

LONGEST_S = 1500  # for one command on a busy machine without KVM
EXAMPLES = Path(__file__).parents[2] / "examples"
REGISTRY = "registry.mayfly.internal:5000"  # as the examples' Dockerfiles have it
Example = Callable[[str], Path]

# For each: the bases its Dockerfile names, a step that only another dependency runs again, a change
# of its source, the step that this runs again, and what starts and answers at port 8000.
SERVICES = {
    "rust-service": (
        ("rust", "debian"),
        "RUN mkdir src",
        ("src/main.rs", "in Rust", "in rusty words"),
        "RUN touch src/main.rs",
        "rust-service",
    ),
    "node-service": (
        ("node",),
        "npm ci",
        ("app.js", "Mayfly build", "changed build"),
        "COPY *.js",
        "node server.js",
    ),
    "go-service": (
        ("go", "debian"),
        "RUN go mod download",
        ("main.go", "Mayfly build", "changed build"),
        "go build",
        "go-service",
    ),
}


@pytest.fixture
def example(farm: Farm, tmp_path: Path) -> Example:
    """A copy of an example that says FROM this farm's registry, and its bases there."""

    def copy(name: str) -> Path:
        for base in SERVICES[name][0]:
            farm.mayfly("base", "push", base, timeout_s=LONGEST_S)
        folder = tmp_path / name
        shutil.copytree(EXAMPLES / name, folder)
        text = (folder / "Dockerfile").read_text()
        assert f"FROM {REGISTRY}/images/base/" in text
        (folder / "Dockerfile").write_text(text.replace(REGISTRY, farm.config.registry_host))
        return folder

    return copy


def steps(said: str) -> dict[str, bool]:
    """The Dockerfile's steps in plain progress, but for FROM: whether each came from the cache."""
    names = dict(re.findall(r"^#(\d+) \[(?!internal\])[^\]]*\] (?!FROM )(.*)$", said, re.M))
    old = cached(said)
    return {name: number in old for number, name in names.items()}


@pytest.mark.parametrize("name", SERVICES)
def test_an_example_is_built_cold_and_then_from_cache_and_does_what_it_says(
    farm: Farm, example: Example, tmp_path: Path, name: str
) -> None:
    folder = example(name)
    _, dependencies, (file, old, new), source, command = SERVICES[name]
    image = f"images/examples/{name}"
    words = farm.build(f"examples/{name}", "--progress=plain", "-t", f"{image}:1", "--push")

    cold = steps(farm.mayfly(*words, folder, timeout_s=LONGEST_S).stderr)
    assert any(dependencies in step for step in cold)
    assert not any(cold.values()), cold

    warm = steps(farm.mayfly(*words, folder, timeout_s=LONGEST_S).stderr)
    assert warm.keys() == cold.keys()
    assert all(warm.values()), warm

    # The image, as whoever pulls it has it: not root, and its service answers.
    (tmp_path / "Dockerfile").write_text(
        f"FROM {farm.config.registry_host}/{image}:1\n"
        f'RUN ["bash", "-ec", "test $(id -u) != 0; {command} & '
        "for n in {1..300}; do (exec 3<>/dev/tcp/127.0.0.1/8000) 2>&- && break; sleep 0.2; done; "
        "exec 3<>/dev/tcp/127.0.0.1/8000; "
        "printf 'GET / HTTP/1.0\\\\r\\\\nHost: localhost\\\\r\\\\n\\\\r\\\\n' >&3; cat <&3\"]\n"
    )
    # A layer cache has what its last build had, so this other Dockerfile gets one of its own.
    asking = farm.build(f"examples/{name}", "--progress=plain", "--mayfly-cache-key=asking")
    ran = farm.mayfly(*asking, tmp_path, timeout_s=LONGEST_S).stderr
    assert "Hello from a Mayfly build" in ran

    # Another source leaves the dependencies where they are.
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    changed = steps(farm.mayfly(*words, folder, timeout_s=LONGEST_S).stderr)
    assert [ok for step, ok in changed.items() if dependencies in step] == [True]
    assert [ok for step, ok in changed.items() if source in step] == [False]


@pytest.mark.usefixtures("emulator")
def test_a_base_image_of_another_platform_runs_in_a_build(farm: Farm, tmp_path: Path) -> None:
    farm.mayfly(
        "base", "push", "debian", "--platform", "linux/amd64,linux/arm64", timeout_s=LONGEST_S
    )
    base = f"{farm.config.registry_host}/images/base/debian"
    (tmp_path / "Dockerfile").write_text(
        f"FROM --platform=linux/arm64 {base} AS foreign\nRUN uname -m; dpkg --print-architecture\n"
        f"FROM {base}\nCOPY --from=foreign /etc/debian_version /foreign\n"
        "RUN echo own $(dpkg --print-architecture)\n"
    )
    words = farm.build("examples/foreign", "--progress=plain", tmp_path)
    said = farm.mayfly(*words, timeout_s=LONGEST_S).stderr
    assert re.search(r"^#\d+ [\d.]+ aarch64$", said, re.M)
    assert re.search(r"^#\d+ [\d.]+ arm64$", said, re.M)
    assert re.search(r"^#\d+ [\d.]+ own amd64$", said, re.M)
