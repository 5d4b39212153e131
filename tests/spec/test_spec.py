"""Good specs, the words of errors, and that contract, form and schema are one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import nickel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mayfly import spec
from mayfly.errors import SchemaError
from mayfly.model import GIB, BuildSpec
from mayfly.spec import report
from mayfly.spec.source import Source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    return (tmp_path / "repo").resolve()


def loaded(repo: Path, text: str) -> BuildSpec:
    (repo / spec.NAME).write_text(text)
    return spec.load(repo / spec.NAME, repo, spec.NAME)


def refusal(repo: Path, text: str) -> str:
    with pytest.raises(SchemaError) as caught:
        loaded(repo, text)
    return str(caught.value)


def test_a_whole_spec_and_an_empty_one(repo: Path) -> None:
    text = """
        # with Windows line ends\r
        let n = 2 in {
          schema_version = 1, cpu = n * 2, memory_gb = 7.5, disk_gb = 60, time_budget_min = 90,
          cache_keys = ["rust-1.85", "v2"], oom_retry = false,
        }"""
    assert loaded(repo, text) == BuildSpec(1, 4, 7.5, 60, 90, ("rust-1.85", "v2"), False)
    assert loaded(repo, "{}") == BuildSpec()


def test_what_is_in_the_repo_can_be_imported(repo: Path) -> None:
    (repo / "ci").mkdir()
    (repo / "ci" / "base.ncl").write_text('{ cpu = 4, memory_gb = (import "deep.json").gb }')
    (repo / "ci" / "deep.json").write_text('{"gb": 12}')
    (repo / "ci" / "plain.ncl").write_text("{ memory_gb = 12 }")
    (repo / "link.ncl").symlink_to("ci/plain.ncl")
    assert loaded(repo, 'import "ci/base.ncl"') == BuildSpec(cpu=4, memory_gb=12)
    assert loaded(repo, f'(import "{repo}/ci/base.ncl") & {{ disk_gb = 9 }}').disk_gb == 9
    assert loaded(repo, '(import "link.ncl") & {}').memory_gb == 12


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "{\n  cpu = 4,\n  memroy_gb = 8,\n}",
            [
                ".build-spec.ncl:3:3: there is no field memroy_gb, expected one of schema_version, "
                "cpu, memory_gb, disk_gb, time_budget_min, cache_keys, oom_retry "
                "- did you mean memory_gb?",
                "    3 |   memroy_gb = 8,",
                "      |   ^^^^^^^^^",
            ],
        ),
        (
            '{ cpu = "four" }',
            [
                '.build-spec.ncl:1:9: cpu: found "four", expected a whole number of vCPUs from 1 '
                "to 256",
                '    1 | { cpu = "four" }',
                "      |         ^^^^^^",
            ],
        ),
        (
            '{ cache_keys = ["a", "B"] }',
            [
                '.build-spec.ncl:1:22: cache_keys: found "B", expected a word of at most 32 '
                "lower-case letters and digits, with . _ - between them",
                '    1 | { cache_keys = ["a", "B"] }',
                "      |                      ^^^",
            ],
        ),
        (
            "{\n\tcpu =\t2 +,\n}",
            [
                ".build-spec.ncl:2:11: unexpected token: ,",
                "    2 |  cpu = 2 +,",
                "      |           ^",
            ],
        ),
        (
            "# four\n[4]",
            [
                ".build-spec.ncl:2:1: found [, expected a record, as in { cpu = 4 }",
                "    2 | [4]",
                "      | ^",
            ],
        ),
    ],
)
def test_an_error_shows_the_place(repo: Path, text: str, lines: list[str]) -> None:
    assert refusal(repo, text).splitlines() == lines


def test_a_fault_in_an_imported_file_is_shown_there(repo: Path) -> None:
    (repo / "ci").mkdir()
    (repo / "ci" / "base.ncl").write_text("{\n  cpu = 0,\n}")
    assert refusal(repo, 'import "ci/base.ncl"').splitlines() == [
        "ci/base.ncl:2:9: cpu: found 0, expected a whole number of vCPUs from 1 to 256",
        "    2 |   cpu = 0,",
        "      |         ^",
    ]


def test_of_a_long_line_the_part_that_matters_is_shown(repo: Path) -> None:
    _, line, carets = refusal(repo, "{" + " " * 5000 + "cpu = 0" + " " * 5000 + "}").splitlines()
    assert len(line) < 120
    assert line[carets.index("^")] == "0"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.symlink_to("/etc/passwd"), "is a link that leads out of"),
        (lambda file: file.symlink_to("nowhere"), "cannot be read: No such file"),
        (lambda file: file.symlink_to(file.name), "cannot be read: "),
        (lambda file: file.mkdir(), "cannot be read: Is a directory"),
        (lambda file: subprocess.run(["mkfifo", file], check=True), "is not a regular file"),
    ],
)
def test_what_is_no_file_of_the_repo(repo: Path, make: Any, says: str) -> None:
    make(repo / spec.NAME)
    assert spec.nearest(repo, repo) == repo / spec.NAME, "it is not passed over"
    with pytest.raises(SchemaError, match=says) as caught:
        spec.load(repo / spec.NAME, repo, "x")
    assert "root:" not in str(caught.value)


def test_the_nearest_spec_up_to_the_root_counts(repo: Path) -> None:
    deep = repo / "a" / "b"
    deep.mkdir(parents=True)
    (repo.parent / spec.NAME).touch()
    assert spec.root_of(deep) == repo
    assert spec.nearest(deep, repo) is None, "what is above the root is somebody else's"
    (repo / spec.NAME).touch()
    assert spec.nearest(deep, repo) == repo / spec.NAME
    (repo / "a" / spec.NAME).touch()
    assert spec.nearest(deep, repo) == repo / "a" / spec.NAME
    outside = repo.parent / "plain"
    outside.mkdir()
    assert spec.root_of(outside) == outside, "without a work tree only the folder itself"


def test_contract_and_form_agree_on_every_value() -> None:
    """A spec that Nickel takes can be sent, and one that can be sent Nickel takes."""
    values: list[object] = [-1, 0, 0.2, 0.25, 0.5, 1, 1.5, 4, 256, 257, 4096, 4097, 65536, 65537]
    values += [10080, 10081, True, "4", [], {}, ["a"], ["a"] * 9, ["a-b.c_d"], ["A"], ["-a"], [1]]
    values += [["a" * 33], ["a__b"]]
    contract = (ROOT / "schemas/lib/build_spec.ncl").read_text()

    def by_contract(document: str) -> bool:
        try:
            nickel.run(f"(\n{document}\n) | (\n{contract}\n)")
        except nickel.NickelException:
            return False
        return True

    def by_form(document: str) -> bool:
        try:
            spec.SpecForm.model_validate_json(document)
        except ValidationError:
            return False
        return True

    def differs(pair: tuple[str, object]) -> bool:
        name, value = pair
        nickel_text = f"{{ {name} = {json.dumps(value)} }}"
        return by_contract(nickel_text) is not by_form(json.dumps({name: value}))

    pairs = [(name, value) for name in [*spec.FIELDS, "memory"] for value in values]
    assert [pair for pair in pairs if differs(pair)] == []


def test_the_schema_has_the_models_fields_and_says_what_they_are() -> None:
    schema = spec.json_schema()
    names = [field.name for field in fields(BuildSpec)]
    assert list(schema["properties"]) == names == list(spec.FIELDS)
    assert schema["additionalProperties"] is False
    assert all(
        field["description"] and "anyOf" not in field for field in schema["properties"].values()
    )
    assert spec.SpecForm(**asdict(BuildSpec())).spec() == BuildSpec()


@given(st.text(max_size=400), st.integers(0, 30), st.integers(0, 300), st.integers(0, 300))
def test_whatever_nickel_says_the_error_is_short_and_printable(
    said: str, line: int, column: int, length: int
) -> None:
    source = Source(said, ROOT, ROOT, "x")
    made = f"error: {said}\n  ┌─ python:{line}:{column}\n{line} │ x\n  │ ^^"
    for each in (report.parse(made, source), report.parse(said, source)):
        error = report.error(each, source, spec.FIELDS)
        assert len(str(error)) < 900
        assert all(part.isprintable() for part in str(error).split("\n"))
    assert all(len(part) < 120 for part in report.excerpt(said, line, column, length))


def test_a_proposal_is_a_good_spec_that_says_what_is_known(repo: Path) -> None:
    guess = spec.propose(("go", "rust"))
    assert "go and rust" in guess
    assert loaded(repo, guess) == BuildSpec()
    uncommented = "\n".join(
        line.replace("  # ", "  ", 1) if line.startswith("  # ") else line
        for line in guess.splitlines()
    )
    assert loaded(repo, uncommented).cpu == 2, "every line is right as it stands"
    known = BuildSpec(cpu=6, memory_gb=10.5, cache_keys=("a",), oom_retry=False)
    text = spec.propose((), spec.Known(known, "by the last 12 builds"))
    assert loaded(repo, text) == known
    assert "by the last 12 builds" in text


def test_a_proposal_has_what_is_usual_for_the_languages() -> None:
    assert "# cpu = 4," in (text := spec.propose(("go", "rust"), usual=spec.usual(("go", "rust"))))
    assert "# memory_gb = 8," in text
    assert "# memory_gb = 4," in spec.propose((), usual=spec.usual(()))


def sizing(builds: int, cpu: float | None, memory_bytes: float | None) -> Any:
    past = {"builds": builds, "target": None, "memory_p95_bytes": 1.0, "cpu_p95": 1.0}
    needs = [
        {"dimension": "cpu", "history": cpu},
        {"dimension": "memory", "history": memory_bytes},
        {"dimension": "disk", "history": None},
    ]
    return {"history": past if builds else None, "needs": needs}


def test_a_proposal_declares_what_past_builds_took(repo: Path) -> None:
    known = spec.taken(sizing(12, 2.1, 5.3 * GIB))
    assert known is not None
    text = spec.propose(("go",), known, spec.usual(("go",)))
    assert loaded(repo, text) == BuildSpec(cpu=3, memory_gb=5.5)
    assert "by the last 12 attempts" in text
    assert spec.taken(sizing(0, None, None)) is None
    assert spec.taken(sizing(1, None, None)) is None


def test_the_contract_is_in_the_wheel(tmp_path: Path) -> None:
    def run(*words: str, **more: Any) -> str:
        done = subprocess.run(words, check=True, capture_output=True, text=True, **more)
        return str(done.stdout)

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site"))
    (tmp_path / spec.NAME).write_text("{ cpu = 3 }")
    program = (
        "import mayfly; from pathlib import Path; from mayfly import spec;"
        "from mayfly.host.component import runner_disks;"
        "print(mayfly.__file__, sorted(runner_disks()), spec.load(Path(spec.NAME), Path()).cpu)"
    )
    said = run(
        *(sys.executable, "-c", program), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}
    )
    assert said.split() == [f"{tmp_path}/site/mayfly/__init__.py", "['root',", "'scratch']", "3"]
