"""`.build-spec.ncl` to `BuildSpec`: what a repo declares about its builds.

source.py     the nearest spec, read as text
evaluate.py   text -> BuildSpec, by a process that `confine.py` has taken everything from
report.py     Nickel's words -> one error that shows the place
form.py       the same contract for JSON
propose.py    a first spec for a repo that has none
"""

from __future__ import annotations

from pathlib import Path

from mayfly.model import BuildSpec
from mayfly.spec.evaluator import evaluate
from mayfly.spec.form import FIELDS, SpecForm, json_schema
from mayfly.spec.propose import Known, propose, taken, usual
from mayfly.spec.source import NAME, nearest, read, root_of

__all__ = [
    "FIELDS",
    "NAME",
    "Known",
    "SpecForm",
    "json_schema",
    "load",
    "nearest",
    "propose",
    "root_of",
    "taken",
    "usual",
]


def load(file: Path, root: Path, shown: str = "") -> BuildSpec:
    """What the file declares; it may import what is below `root`, and is called `shown`.

    Raises `SchemaError` for whatever is wrong with it (also that it is not there), within 2 s.
    """
    return evaluate(read(file, root.resolve(), shown or str(file)))
