"""What a build takes when all that is known of it is the language: a guess for a first build.

A language is told by the files at the repo's root that its own tools look for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Language:
    """The files that tell it (patterns), and what a build of it takes: vCPUs, and GiB of memory."""

    files: tuple[str, ...]
    cpu: int
    memory_gb: int


LANGUAGES: Mapping[str, Language] = {
    "rust": Language(("Cargo.toml",), 4, 8),
    "java": Language(("pom.xml", "build.gradle", "build.gradle.kts"), 4, 8),
    "scala": Language(("build.sbt",), 4, 8),
    "c": Language(("CMakeLists.txt", "meson.build", "configure.ac"), 4, 8),
    "swift": Language(("Package.swift",), 4, 8),
    "dotnet": Language(("*.csproj", "*.fsproj", "*.sln"), 4, 8),
    "haskell": Language(("stack.yaml", "cabal.project"), 4, 8),
    "go": Language(("go.mod",), 2, 4),
    "javascript": Language(("package.json",), 2, 4),
    "python": Language(("pyproject.toml", "setup.py", "requirements.txt", "Pipfile"), 2, 4),
    "php": Language(("composer.json",), 2, 4),
    "ruby": Language(("Gemfile",), 2, 4),
    "elixir": Language(("mix.exs",), 2, 4),
}
"""By name. Those for Rust and JavaScript are the decision record's; what compiles and links
natively, or on a JVM, is like the one, what mostly fetches and packs like the other."""


def known(words: Iterable[str]) -> tuple[str, ...]:
    """The languages among `words`, each a name or one of its files; others are left out."""
    words = set(words)
    return tuple(
        name
        for name, language in LANGUAGES.items()
        if name in words or any(fnmatchcase(w, mark) for w in words for mark in language.files)
    )


def found(folder: Path) -> tuple[str, ...]:
    """The languages whose files are in `folder`; none when it is no folder."""
    return (
        known(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else ()
    )
