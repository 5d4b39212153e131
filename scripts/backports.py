"""Write an apt source for this Debian's backports: a copy of the one for its main archive.

Address, key and options are the host's own, whichever of apt's two formats they are in. Nothing
is done where backports are configured already. Usage: backports.py TARGET CODENAME, where TARGET
is the file to write, without its suffix. apt's lists must be there (`apt-get update`). Exits 1,
saying why, where no source fits.
"""

import re
import subprocess
import sys
from pathlib import Path


def main(target: Path, codename: str) -> int:
    fields = "$(RELEASE) $(COMPONENT) $(SOURCESENTRY)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = [line.split(" ", 2) for line in listed.splitlines()]
    if any(row[:2] == [f"{codename}-backports", "main"] for row in rows):
        return 0
    for release, component, entry in rows:
        path, _, number = entry.rpartition(":")
        if component == "main" and release in (codename, "stable", "oldstable"):
            text = Path(path).read_text()
            if path.endswith(".sources"):
                source = deb822(text, release, codename)
            else:
                source = one_line(text.splitlines()[int(number) - 1], codename)
            target.with_suffix(Path(path).suffix).write_text(source)
            return 0
    print(f"no apt source of this machine serves Debian {codename} main", file=sys.stderr)
    return 1


def deb822(text: str, release: str, codename: str) -> str:
    """The stanza of `text` that serves `release`, serving the backports' main instead."""
    stanzas = (f"{stanza.strip()}\n" for stanza in re.split(r"\n\s*\n", text))
    for stanza in stanzas:
        suites = re.search(r"^Suites:(.*)$", stanza, re.M | re.I)
        if suites and release in suites[1].split():
            backports = with_field(stanza, "Suites", f"{codename}-backports")
            return with_field(with_field(backports, "Components", "main"), "Types", "deb")
    raise SystemExit(f"no stanza with the suite {release}")


def with_field(stanza: str, key: str, value: str) -> str:
    return re.sub(rf"^{key}:.*$", f"{key}: {value}", stanza, flags=re.M | re.I)


def one_line(line: str, codename: str) -> str:
    """The entry `line` with the backports' main in place of its suite and components."""
    found = re.match(r"\s*deb\s+(\[.*?\]\s+)?(\S+)\s", line)
    if found is None:
        raise SystemExit(f"cannot read the apt source {line!r}")
    return f"deb {found[1] or ''}{found[2]} {codename}-backports main\n"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
