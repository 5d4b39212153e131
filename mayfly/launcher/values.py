"""`PLUGIN_*` to typed values: what Woodpecker makes of a pipeline's YAML, taken apart again. Pure.

Woodpecker joins lists of scalars by commas and writes everything deeper as JSON
(`pipeline/frontend/yaml/compiler/settings/params.go`); a JSON list or map counts wherever one makes
sense. A comma inside an element of a joined list is written `\\,`.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mayfly.launcher.settings import BY_NAME, PREFIX, TABLE, Kind, Use

_TRUE = frozenset({"1", "t", "true", "y", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "n", "no", "off"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMA = re.compile(r"(?<!\\),")
_SECRET_FIELDS = frozenset({"id", "type", "src", "source", "env"})
_LOGIN_FIELDS = frozenset({"registry", "username", "password"})
_LOGIN_EXTRA = frozenset({"email", "mirrors"})
MOST = 100
"""Elements of a list; more is a mistake, and an argument list has its limits."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Login:
    """One entry of `logins`."""

    registry: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Given:
    """What was set. `values` are by name, those without a fault only; `faults` are for people, one
    line each; `remarks` say of settings that they have no effect. `raw` is what each was, by name;
    `named` are the variables that look like settings, and that settings name.
    """

    values: Mapping[str, Any]
    faults: tuple[str, ...]
    remarks: tuple[str, ...]
    raw: Mapping[str, str] = field(default_factory=dict, repr=False)
    named: Mapping[str, str] = field(default_factory=dict, repr=False)

    def text(self, name: str) -> str:
        value = self.values.get(name)
        return TABLE[name].default if value is None else str(value)

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        return TABLE[name].default == "true" if value is None else bool(value)

    def words(self, name: str) -> tuple[str, ...]:
        found: tuple[str, ...] = self.values.get(name) or ()
        return found

    def pairs(self, name: str) -> tuple[tuple[str, str | None], ...]:
        found: tuple[tuple[str, str | None], ...] = self.values.get(name) or ()
        return found

    def logins(self) -> tuple[Login, ...]:
        found: tuple[Login, ...] = self.values.get("logins") or ()
        return found


class _Fault(Exception):
    """What is wrong with a value, and what to do; the setting's name is put in front."""


def given(environ: Mapping[str, str]) -> Given:
    """The settings in `environ`. An empty one is one that is not set. A variable that `secrets` or
    `build_args_from_env` name is no setting itself, whatever it is called.
    """
    values: dict[str, Any] = {}
    raw: dict[str, str] = {}
    faults: list[str] = []
    unknown: dict[str, str] = {}
    remarks: list[str] = []
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        text, name = environ[variable], variable.removeprefix(PREFIX).lower()
        setting = BY_NAME.get(name)
        if not text.strip():
            continue
        if setting is None:
            unknown[variable] = _unknown(name)
            continue
        if setting.name in raw:
            faults.append(f"{setting.name}: given twice, as {' and '.join(setting.names)}")
            continue
        raw[setting.name] = text
        try:
            value = _READERS[setting.kind](text)
        except _Fault as fault:
            # A value that does not matter is not worth an error; one that is secret is not shown.
            if setting.use is Use.USED:
                faults.append(f"{setting.name}: {fault}")
            continue
        if setting.use is Use.REFUSED and value is not False:
            faults.append(f"{setting.name}: refused - {setting.doc}")
        elif setting.use is Use.IGNORED and value is not False:
            remarks.append(f"setting {setting.name} has no effect: {setting.doc}")
        elif setting.use is Use.USED:
            values[setting.name] = value
    for setting in TABLE.values():
        if setting.name not in raw:
            found = next((environ[n] for n in setting.environ if environ.get(n)), "")
            if found:
                raw[setting.name] = values[setting.name] = found
    named = {name: environ[name] for name in _named(values) if name in environ}
    faults += [fault for variable, fault in unknown.items() if variable not in named]
    return Given(values, tuple(faults), tuple(remarks), raw, named)


def _named(values: Mapping[str, Any]) -> Iterator[str]:
    """The variables that settings name."""
    yield from values.get("build_args_from_env", ())
    for entry, value in values.get("secrets", ()):
        if value is None:
            yield secret_places(entry)[0]


def secret_places(entry: str) -> tuple[str, str]:
    """The variable and the file that a secret in buildx's own form may be in (its
    util/buildflags/secrets.go); where it names neither, both are called as it is (BuildKit's
    session/secrets/secretsprovider/store.go: the variable if there is one).
    """
    fields = {key: value for key, _, value in _parts(entry)}
    variable, file = fields.get("env", ""), fields.get("src") or fields.get("source", "")
    if fields.get("type") == "env" and not variable:
        variable, file = file, ""
    return (variable, file) if variable or file else (fields.get("id", ""),) * 2


def _parts(entry: str) -> list[tuple[str, str, str]]:
    """Key, `=` and value of each part."""
    try:
        row = next(csv.reader([entry]), [])
    except csv.Error:
        row = [entry]
    split = (part.partition("=") for part in row)
    return [(key.strip().lower(), equals, value) for key, equals, value in split]


def variables(text: str) -> dict[str, str]:
    """The `NAME=VALUE` lines of a file, as dotenv has them: comments, `export` and quotes."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        value = value.strip()
        if equals and _NAME.fullmatch(name.strip()) and "\0" not in value:
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else value
    return found


def _unknown(name: str) -> str:
    used = [n for n, setting in BY_NAME.items() if setting.use is Use.USED]
    near = difflib.get_close_matches(name, used, 1)
    shown = name[:60]
    return f"{shown}: there is no such setting" + (f" - do you mean {near[0]}?" if near else "")


def _text(text: str) -> str:
    if "\0" in text:
        raise _Fault("holds a NUL character - write plain text")
    return text.strip()


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise _Fault(f"{_shown(text)} is neither true nor false")
    return word in _TRUE


def _integer(text: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text, re.ASCII):
        raise _Fault(f"{_shown(text)} is no whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text) if text.isascii() else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _Fault(f"{_shown(text)} is no number")
    return number


def _words(text: str) -> tuple[str, ...]:
    parsed = _json(text)
    if parsed is None:
        parts = [part.replace("\\,", ",") for line in text.splitlines() for part in _split(line)]
    elif isinstance(parsed, list):
        parts = [_scalar(each) for each in parsed]
    else:
        raise _Fault("is a map - write a list")
    return _bounded(tuple(word for part in parts if (word := _text(part))))


def _pairs(text: str) -> tuple[tuple[str, str | None], ...]:
    """Names with values; a name without one takes it from the environment, as buildx has it."""
    parsed = _json(text)
    if parsed is None:
        parts: Sequence[Any] = [
            part.replace("\\,", ",") for line in text.splitlines() for part in _split(line)
        ]
    else:
        parts = parsed if isinstance(parsed, list) else [parsed]
    found: list[tuple[str, str | None]] = []
    for part in parts:
        if isinstance(part, dict):
            found += [(_key(name), _scalar(value)) for name, value in part.items()]
            continue
        name, equals, value = _scalar(part).partition("=")
        if not equals and not name.strip():
            continue
        if not equals and not _NAME.fullmatch(name.strip()):
            raise _Fault(  # without it: it may be a part of something secret
                "a part of it is no NAME=VALUE - write a map, or `\\,` for a comma in a value"
            )
        found.append((_key(name), value if equals else None))
    return _bounded(tuple(found))


def _entries(text: str) -> tuple[str, ...]:
    """buildx's own `key=value,…`, one or several: a new one begins where a key comes again, and at
    a bare word.
    """
    parsed = _json(text)
    if isinstance(parsed, dict):
        parsed = [parsed]
    if parsed is not None:
        return _bounded(tuple(_entry(each) for each in parsed))
    found: list[str] = []
    for line in text.splitlines():
        keys: set[str] = set()
        for part in _COMMA.split(line.replace("\\,", ",")):
            word = _text(part)
            if not word:
                continue
            key, equals, _ = word.partition("=")
            key = key.strip().lower()
            if equals and keys and key not in keys:
                found[-1] += f",{word}"
            else:
                found.append(word)
                keys = set()
            if equals:
                keys.add(key)
    return _bounded(tuple(found))


def _keys(text: str) -> tuple[str, ...]:
    """`ID` or `ID=FILE,…`, one or several: a word without a `=` is one more file, but `default`."""
    found: list[str] = []
    for word in _words(text):
        if "=" in word or word == "default" or "=" not in (found or [""])[-1]:
            found.append(word)
        else:
            found[-1] += f",{word}"
    return tuple(found)


def _entry(value: Any) -> str:
    if isinstance(value, dict):
        fields = [f"{_key(name)}={_scalar(each)}" for name, each in value.items()]
        text = ",".join(f'"{each}"' if "," in each else each for each in fields)
    else:
        text = _text(_scalar(value))
    if len(text.splitlines()) > 1:
        raise _Fault("has a line break in an entry")
    return text


def _secrets(text: str) -> tuple[tuple[str, str | None], ...]:
    """Ids and values of a map; of buildx's own form the text, without a value."""
    parsed = _json(text)
    if parsed is None:
        return tuple((_place(entry), None) for entry in _entries(text))
    found: list[tuple[str, str | None]] = []
    for part in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(part, dict) and not _tells_where(part):
            found += [(_key(name), _scalar(value)) for name, value in part.items()]
        else:
            found.append((_place(_entry(part)), None))
    return _bounded(tuple(found))


def _place(entry: str) -> str:
    """A secret in buildx's own form. One in none is not shown, for it may be the secret itself."""
    parts = _parts(entry)
    if not all(equals and key in _SECRET_FIELDS for key, equals, _ in parts) or not any(
        key == "id" and value for key, _, value in parts
    ):
        raise _Fault(
            "an entry is no `id=NAME,src=FILE` or `id=NAME,env=VARIABLE` - write a map of ids and "
            "values, as `npm: {from_secret: npm_token}`"
        )
    return entry


def _tells_where(part: Mapping[str, Any]) -> bool:
    """Whether a map is a secret in buildx's own form; else its values may be secrets themselves."""
    return "id" in part and len(part) > 1 and _SECRET_FIELDS.issuperset(part)


def _logins(text: str) -> tuple[Login, ...]:
    parsed = _json(text)
    if parsed is None:
        raise _Fault("is no list of maps with registry, username and password")
    found = []
    for number, each in enumerate(parsed if isinstance(parsed, list) else [parsed], 1):
        if not isinstance(each, dict):
            raise _Fault(f"entry {number} is no map with registry, username and password")
        aws = [name for name in each if str(name).startswith("aws_")]
        if aws:
            raise _Fault(f"entry {number}: {aws[0]}: refused - {TABLE['aws_region'].doc}")
        if unknown := set(map(str, each)) - _LOGIN_FIELDS - _LOGIN_EXTRA:
            raise _Fault(f"entry {number}: there is no field {min(unknown)[:60]!r} in a login")
        values = {name: _scalar(each.get(name, "")).strip() for name in _LOGIN_FIELDS}
        if missing := sorted(name for name, value in values.items() if not value):
            raise _Fault(f"entry {number} has no {' and no '.join(missing)}")
        found.append(Login(**values))
    return _bounded(tuple(found))


_READERS: Mapping[Kind, Callable[[str], Any]] = {
    Kind.TEXT: _text,
    Kind.FLAG: _flag,
    Kind.INTEGER: _integer,
    Kind.NUMBER: _number,
    Kind.WORDS: _words,
    Kind.PAIRS: _pairs,
    Kind.ENTRIES: _entries,
    Kind.KEYS: _keys,
    Kind.SECRETS: _secrets,
    Kind.LOGINS: _logins,
}


def _json(text: str) -> Any:
    """What the JSON list or map says; None for text that is neither."""
    word = text.strip()
    if word[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        raise _Fault("begins like JSON and is none") from None


def _split(line: str) -> list[str]:
    return _COMMA.split(line)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        raise _Fault("is nested more deeply than anything here")
    text = str(value)
    if "\0" in text:
        raise _Fault("holds a NUL character - write plain text")
    return text


def _key(name: Any) -> str:
    text = str(name).strip()
    if not text or "=" in text or "," in text or not text.isprintable():
        raise _Fault(f"{_shown(text)} is no name")
    return text


def _bounded(found: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(found) > MOST:
        raise _Fault(f"has {len(found)} elements, {MOST} are allowed")
    return found


def _shown(text: str) -> str:
    """A value in an error: short, printable. Never called for one that may be secret."""
    return repr(text.strip()[:40])
