"""`mayfly spec check|init|schema`: what a repo declares about its builds. None needs a farm; `init`
uses what one knows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mayfly.cli.build import here
from mayfly.cli.machine import AsJson
from mayfly.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mayfly.model import BuildSpec
    from mayfly.spec import Known

app = typer.Typer(
    help="Build specs: what a repo declares about its builds, in .build-spec.ncl.",
    rich_markup_mode=None,
)


@app.command("check")
def check(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", help="A spec, or a folder of the repo; default: the current one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a spec declares, or what is wrong with it and where (exit status 3).

    Of a folder, the spec is checked that `mayfly build` would use there.

    \b
    Examples:
        mayfly spec check
        mayfly spec check services/web
        mayfly spec check --json ci/other-spec.ncl
    """
    file, spec = _checked(path or Path())
    declared = {
        name: value
        for name in type(spec).__dataclass_fields__
        if (value := getattr(spec, name)) not in (None, ())
    }
    if as_json:
        print_json({"file": str(file), "spec": declared})
        return
    rows = [(name, _shown(value)) for name, value in declared.items()]
    print_table((str(file), ""), rows, "")


@app.command("init")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the spec goes: the repo's root.")
    ] = Path(),
    stdout: Annotated[
        bool, typer.Option("--stdout", help="Print the spec instead of writing it.")
    ] = False,
) -> None:
    """Write a first .build-spec.ncl, by the files that are there. One that is there stays.

    It declares what the repo's past builds took, where a farm answers that knows some, and has what
    is usual for the languages as comments.

    \b
    Examples:
        mayfly spec init
        mayfly spec init --stdout services/web
    """
    from mayfly import languages, spec
    from mayfly.errors import Conflict, UsageError

    if not folder.is_absolute():
        here()  # must be there
    file = folder / spec.NAME
    try:
        found = languages.found(folder)
        text = spec.propose(found, _known(folder, found), spec.usual(found))
        if stdout:
            print(text, end="")
            return
        with file.open("x") as new:
            new.write(text)
    except FileExistsError:
        raise Conflict(f"{file} is there already", hint="see it with --stdout instead") from None
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise UsageError(f"no spec was written: {why}", hint="name the repo's folder") from None
    print(f"{file} written")


@app.command("schema")
def schema() -> None:
    """Print the contract as JSON Schema, for editors.

    \b
    Examples:
        mayfly spec schema
        mayfly spec schema > build-spec.schema.json
    """
    from mayfly import spec

    print_json(spec.json_schema())


def _checked(path: Path) -> tuple[Path, BuildSpec]:
    """The spec that `path` is or has, and what it declares. Raises `UsageError` for none."""
    from mayfly import spec
    from mayfly.errors import UsageError

    current = here() if not path.is_absolute() else None
    if not path.is_dir():
        return path, spec.load(path, spec.root_of(path.parent))
    root = spec.root_of(path)
    file = spec.nearest(path, root)
    if file is None:
        raise UsageError(
            f"there is no {spec.NAME} from {path} up to the work tree's root, {root}",
            hint="which is fine; `mayfly spec init` writes a first one",
        )
    shown = file.relative_to(current) if current and file.is_relative_to(current) else file
    return shown, spec.load(file, root, str(shown))


def _known(folder: Path, languages: tuple[str, ...]) -> Known | None:
    """What the farm knows of the repo's past builds; None without a farm that knows some."""
    from mayfly import spec
    from mayfly.build import repo
    from mayfly.cli.farm import ask
    from mayfly.errors import MayflyError
    from mayfly.model import LeaseRequest

    try:
        name = repo.of(os.environ.get("CI_REPO", ""), folder.resolve())
        wanted = LeaseRequest(repo=name, ssh_public_key="", languages=languages)
        return spec.taken(ask(lambda farm: farm.size(wanted)))
    except MayflyError:
        return None


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
