"""A generator of wrong build specs: of each kind several, the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SEED = 20261124
HUGE = 70_000


@dataclass(frozen=True)
class Wrong:
    """A spec that must fail. `line` is where (None: it has no place), `says` what the error has.

    `data` is the file; `make` makes what lies around it, `link` what it is a symbolic link to.
    """

    kind: str
    data: bytes
    says: str
    line: int | None = 0  # 0: somewhere in the file
    make: Callable[[Path], None] = field(default=lambda root: None)


BAD_VALUES = {
    "cpu": ['"4"', "0", "-1", "257", "1.5", "null", "true", "[4]", "{ a = 1 }", "'four", "1 / 3"],
    "memory_gb": ['"8"', "0", "0.2", "4097", "-4", "null", "false", "[]", "fun x => x", "'big"],
    "disk_gb": ['"80 GB"', "0", "0.5", "65537", "null", "true", "{}", "[1]", "1 - 2"],
    "time_budget_min": ['"1h"', "0", "0.5", "10081", "null", "true", "'long", "-60", "[60]"],
    "cache_keys": [
        *('"a"', '["A"]', '["a/b"]', "[1]", '[""]', "{}", "null", '["-a"]', '["a__b"]'),
        *('["a", ["b"]]', f'["{"a" * 33}"]', '["a", "b", "c", "d", "e", "f", "g", "h", "i"]'),
    ],
    "oom_retry": ['"yes"', "0", "1", "null", "[]", "'true", "{}"],
    "schema_version": ['"1"', "0", "2", "1.5", "null", "[1]", "true"],
}
UNKNOWN = ["memory", "cpus", "memroy_gb", "Cpu", "time_budget", "disk", "oomRetry", "cache-keys"]
UNKNOWN += ["image", "x", "_cpu", "spec", "memory_gb2", "budget_min", "secrets", "name"]
GOOD = """\
# What this repo's builds need.
let gigabytes = fun n => n * 2 in
{
  schema_version = 1,
  cpu = 4,
  memory_gb = gigabytes 4,
  cache_keys = ["rust-%{"1.85"}", "v2"],
}
"""
"""Cut off anywhere between its braces it is wrong."""

SYNTAX = [
    "{ cpu = 4", "{ cpu = }", "cpu = 4", "{ cpu: 4 }", "{ cpu = 4; }", "{ cpu = 4 }}", "{ , }",
    '{ cpu = "4 }', "{ cpu == 4 }", "{ cpu = 4 memory_gb = 8 }", "let x = 4 { cpu = x }",
    "{ cpu = (4 }", "{ cpu = 4) }", "if true then { cpu = 4 }", "{ 'cpu = 4 }", "fun => {}",
    "{ cpu = 4 } in {", "{ cpu = 4 }) | ({ .. }", "---\ncpu: 4", '{"cpu": 4}',
    "{ cpu = 4, /* vCPUs */ }", "// four\n{ cpu = 4 }", "", "# nothing\n", "\n\n", "{ m%\"\" }",
]  # fmt: skip
MEANING = [
    ("{ cpu = four }", "unbound identifier"),
    ("{ cpu = 1 / 0 }", "division by zero"),
    ('{ cpu = 1 + "1" }', "type"),
    ("{ cpu = 1, cpu = 2 }", "non mergeable"),
    ("{ cpu | Number }", "missing definition"),
    ('std.fail_with "no"', "no"),
    ("{ cpu = std.array.first [] }", "contract broken"),
    ('{ cpu = (import \'Json "x") }', ""),
    ("4", "expected a record"),
    ('"{ cpu = 4 }"', "expected a record"),
    ("[{ cpu = 4 }]", "expected a record"),
    ("fun x => { cpu = 4 }", ""),
    ("null", "expected a record"),
]
ENDLESS = [
    ("let rec x = x in x", "infinite recursion"),
    ("{ cpu = memory_gb, memory_gb = cpu }", "infinite recursion"),
    ("{ cpu = cpu + 1 }", "infinite recursion"),
    ("let rec f = fun x => f x in f 1", ""),
    ("let rec f = fun x => f (x + 1) in { cpu = f 1 }", ""),
    ("let rec f = fun x => 1 + f x in { cpu = f 1 }", ""),
]
BLOW_UP = [
    "let rec f = fun s => f (s ++ s) in f \"aaaaaaaa\"",
    "{ cpu = std.array.length (std.array.replicate 1000000000 1) }",
    "{ cpu = std.array.fold_left (fun a _ => a * a) 10 (std.array.range 0 60) }",
    "let d = fun x => [x, x] in " + "d (" * 60 + "1" + ")" * 60,
    "let f = fun x => x + x in { cpu = " + "f (" * 40 + "2" + ")" * 40 + " }",
    "\n".join(f"let x{n + 1} = [x{n}, x{n}] in" for n in range(40)).replace("[x0, x0]", "1")
    + " x40",
]  # fmt: skip
OUTSIDE = [
    "/etc/passwd", "/etc/hostname", "../outside.ncl", "../../outside.ncl", "sub/../../outside.ncl",
    "/proc/self/environ", "/proc/self/maps", "/dev/zero", "/dev/stdin", "../", "/",
    "link.ncl", "sub/link.ncl", "folder/outside.ncl", "loop.ncl",
]  # fmt: skip


def wrong_specs() -> Iterator[Wrong]:
    """Every one, in a fixed order; at least 200."""
    dice = random.Random(SEED)  # noqa: S311
    for name, values in BAD_VALUES.items():
        for value in values:
            before = dice.choice(["", "\n", "# a comment\n\n", "let unused = 1 in\n"])
            text = f"{before}{{\n  {name} = {value},\n}}\n"
            yield Wrong(f"value of {name}", text.encode(), name, before.count("\n") + 2)
    for name in UNKNOWN:
        text = f'{{\n  cpu = 2,\n  "{name}" = {dice.choice(["1", "true", "[]"])},\n}}\n'
        yield Wrong("unknown field", text.encode(), f"there is no field {name}", 3)
    for end in dice.sample(range(GOOD.index("{"), GOOD.rindex("}")), 40):
        yield Wrong("cut off", GOOD[:end].encode(), "")
    for text in SYNTAX:
        yield Wrong("syntax", text.encode(), "")
    for text, says in MEANING:
        yield Wrong("meaning", text.encode(), says)
    for text, says in ENDLESS:
        yield Wrong("endless", text.encode(), says, 0 if says else None)
    for text in BLOW_UP:
        yield Wrong("blow-up", text.encode(), "", None)
    for path in OUTSIDE:
        text = f'{{ cpu = 2 }} &\n  (import "{path}")\n'
        yield Wrong("import", text.encode(), "import of", 2, _surroundings)
    for opening, closing in (("[", "]"), ("(", ")"), ("{ a = ", " }"), ("!", ""), ("-", "")):
        for depth in (2_000, 10_000):
            yield Wrong(
                "deep", (opening * depth + "1" + closing * depth).encode()[:60_000], "", None
            )
    for size in (HUGE, HUGE * 20):
        yield Wrong("huge", b"{ cpu = 4 }".ljust(size), "is too large", None)
    yield Wrong("huge", b"# " + b"x" * HUGE, "is too large", None)
    for start in (
        b"",
        b"\x7fELF",
        b"{ cpu = 4 }\n",
        b"\x1f\x8b\x08",
        b"\xff\xfe{\0",
        b"\xef\xbb\xbf{",
    ):
        yield Wrong("binary", start + dice.randbytes(200) + b"\xff", "UTF-8")
    for text in ("\0", "{ cpu = \0 }", "\x1b[2J\x1b[31m", "{ cpu = 4 }\n\0", "\u202e{ cpu = 4 }"):
        yield Wrong("binary", text.encode(), "")
    for text in (
        "{ cpu = 4 } | { cpu | String }",
        "{ cpu | std.contract.from_predicate (fun x => x > 4) = 4 }",
        "{ cpu | [| 'two, 'four |] = 'five }",
        "let C = { cpu | Number, memory_gb | Number } in { cpu = 4 } | C",
        '{ cpu | std.contract.blame_with_message "no\n  ┌─ /etc/passwd:1:1\n" = 4 }',
    ):
        yield Wrong("own contract", text.encode(), "")


def _surroundings(root: Path) -> None:
    """What the imports of `OUTSIDE` lead to: all of it is there, and out of the repo."""
    (root.parent / "outside.ncl").write_text("{ memory_gb = 4 }")
    for folder in (root, root / "sub"):
        folder.mkdir(exist_ok=True)
        (folder / "link.ncl").symlink_to(root.parent / "outside.ncl")
    (root / "folder").symlink_to(root.parent)
    (root / "loop.ncl").symlink_to("loop.ncl")
