"""The flags of buildx's verbs, and an argument list taken apart by them. Pure.

What is taken apart can be put together again: nothing of the user's is lost, moved or changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mayfly.errors import UsageError

OWN = frozenset({"cache-key", "keep-on-failure", "no-grow", "repo", "size", "spec"})
OWN_SWITCHES = frozenset({"keep-on-failure", "no-grow"})
"""Mayfly's own options, as --mayfly-NAME; those that are no switches take a value."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What one verb of buildx v0.38 takes, hidden flags included; a test compares with --help."""

    verb: str
    valued: frozenset[str]
    switches: frozenset[str]
    short: Mapping[str, str]


BUILD = Flags(
    "build",
    valued=frozenset(
        {
            "add-host",
            "allow",
            "annotation",
            "attest",
            "build-arg",
            "build-context",
            "builder",
            "cache-from",
            "cache-to",
            "call",
            "cgroup-parent",
            "cpu-period",
            "cpu-quota",
            "cpu-shares",
            "cpuset-cpus",
            "cpuset-mems",
            "file",
            "iidfile",
            "isolation",
            "label",
            "memory",
            "memory-swap",
            "metadata-file",
            "network",
            "no-cache-filter",
            "output",
            "platform",
            "policy",
            "print",
            "progress",
            "provenance",
            "resource",
            "sbom",
            "secret",
            "security-opt",
            "shm-size",
            "ssh",
            "tag",
            "target",
            "timeout",
            "ulimit",
        }
    ),
    switches=frozenset(
        {
            "check",
            "compress",
            "debug",
            "force-rm",
            "help",
            "load",
            "no-cache",
            "pull",
            "push",
            "quiet",
            "rm",
            "squash",
        }
    ),
    short={
        "D": "debug",
        "c": "cpu-shares",
        "f": "file",
        "h": "help",
        "m": "memory",
        "o": "output",
        "q": "quiet",
        "t": "tag",
    },
)
BAKE = Flags(
    "bake",
    valued=frozenset(
        {
            "allow",
            "builder",
            "call",
            "file",
            "jobs",
            "list",
            "metadata-file",
            "policy",
            "progress",
            "provenance",
            "sbom",
            "set",
            "var",
        }
    ),
    switches=frozenset(
        {
            "check",
            "debug",
            "help",
            "list-targets",
            "list-variables",
            "load",
            "no-cache",
            "print",
            "pull",
            "push",
        }
    ),
    short={"D": "debug", "f": "file", "h": "help", "j": "jobs"},
)


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument as typed: `tokens` joined again are what the user wrote.

    `flag` is the long name without dashes, empty for a positional argument or `--`.
    `value` is what the flag was given (`true` for a bare switch), or the positional itself.
    """

    flag: str
    value: str
    tokens: tuple[str, ...]

    def with_value(self, value: str) -> Arg:
        """The same argument with another value, in the form that the user chose."""
        *front, last = self.tokens
        return Arg(self.flag, value, (*front, last.removesuffix(self.value) + value))

    @property
    def on(self) -> bool:
        """Whether a switch is switched on (`--push=false` is not)."""
        return self.value.lower() not in {"0", "f", "false"}


def split(argv: Sequence[str], flags: Flags) -> tuple[Arg, ...]:
    """The arguments one by one, in order, by the rules of pflag (which buildx uses).

    Joining all `tokens` gives `argv` again. Raises `UsageError` for a flag that neither buildx
    nor Mayfly has, and for a flag whose value is missing.
    """
    args: list[Arg] = []
    rest = list(argv)
    while rest:
        typed = rest.pop(0)
        if typed == "--":
            args.append(Arg("", "", (typed,)))
            args.extend(Arg("", word, (word,)) for word in rest)
            break
        if typed.startswith("--"):
            args.append(_long(typed, rest, flags))
        elif typed.startswith("-") and typed != "-":
            args.extend(_short(typed, rest, flags))
        else:
            args.append(Arg("", typed, (typed,)))
    return tuple(args)


def _long(typed: str, rest: list[str], flags: Flags) -> Arg:
    name, equals, value = typed[2:].partition("=")
    own = name.startswith("mayfly-")
    if own and name.removeprefix("mayfly-") not in OWN:
        raise UsageError(
            f"--{name} is no option of mayfly {flags.verb}",
            hint="use one of " + ", ".join(f"--mayfly-{n}" for n in sorted(OWN)),
        )
    if own and name.removeprefix("mayfly-") in OWN_SWITCHES:
        return Arg(name, value if equals else "true", (typed,))
    if own or name in flags.valued:
        if equals:
            return Arg(name, value, (typed,))
        return Arg(name, *_next(typed, rest, typed))
    if name in flags.switches:
        return Arg(name, value if equals else "true", (typed,))
    raise _unknown(f"--{name}", flags)


def _short(typed: str, rest: list[str], flags: Flags) -> Iterable[Arg]:
    """`-t x`, `-tx`, `-t=x`, and switches in a bunch: `-qt x` (then it stays with the last).

    Only the last letter of a bunch can take a value, so the letters before it are switches.
    """
    letters = typed[1:]
    switches: list[str] = []
    for place, letter in enumerate(letters):
        name = flags.short.get(letter)
        if name is None:
            raise _unknown(f"-{letter}", flags)
        value = letters[place + 1 :]
        if name in flags.valued:
            before = [Arg(switch, "true", ()) for switch in switches]
            if value.startswith("="):
                return [*before, Arg(name, value[1:], (typed,))]
            if value:
                return [*before, Arg(name, value, (typed,))]
            return [*before, Arg(name, *_next(f"-{letter}", rest, typed))]
        if value.startswith("="):
            return [*(Arg(s, "true", ()) for s in switches), Arg(name, value[1:], (typed,))]
        switches.append(name)
    *before_last, last = switches
    return [*(Arg(s, "true", ()) for s in before_last), Arg(last, "true", (typed,))]


def _next(shown: str, rest: list[str], typed: str) -> tuple[str, tuple[str, ...]]:
    if not rest:
        raise UsageError(f"{shown} needs a value", hint=f"write {shown} VALUE")
    value = rest.pop(0)
    return value, (typed, value)


def _unknown(shown: str, flags: Flags) -> UsageError:
    return UsageError(
        f"unknown flag {shown}", hint=f"`docker buildx {flags.verb} --help` lists the flags"
    )


def asks_help(argv: Sequence[str], flags: Flags) -> bool:
    """Whether `--help` or `-h` is among the flags. Never raises: wrong flags are for `parse`."""
    try:
        return any(arg.flag == "help" for arg in split(argv, flags))
    except UsageError:
        return bool({"--help", "-h"} & set(argv))
