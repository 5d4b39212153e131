"""What a project is written in, by the files that its tools want at the top of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

MARKERS: Mapping[str, str] = {
    "Cargo.toml": "rust",
    "package.json": "node",
    "go.mod": "go",
    "pyproject.toml": "python",
    "requirements.txt": "python",
    "setup.py": "python",
    "Pipfile": "python",
    "pom.xml": "java",
    "build.gradle": "java",
    "build.gradle.kts": "java",
    "build.sbt": "scala",
    "*.csproj": "dotnet",
    "*.sln": "dotnet",
    "Gemfile": "ruby",
    "composer.json": "php",
    "mix.exs": "elixir",
    "Package.swift": "swift",
    "CMakeLists.txt": "cpp",
    "meson.build": "cpp",
}
"""A file's name, or a pattern of names, to the language that it speaks for."""


def languages(names: Iterable[str]) -> tuple[str, ...]:
    """The languages that a folder with files of these `names` is written in, sorted, each once."""
    found = {MARKERS[mark] for name in names for mark in MARKERS if fnmatchcase(name, mark)}
    return tuple(sorted(found))
