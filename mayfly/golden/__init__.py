"""The golden image that runners start from: recipe -> root -> disk, dated, with a manifest.

make(config, …) -> Golden      today's, unless nothing changed (`build` with what it says)
listing(state), newest(state) what is there
verify(golden)                are the bytes still those of the manifest
discard(path)                 take one away
make_apart(config, …)         `make` in a process of its own
"""

from mayfly.golden.apart import make_apart
from mayfly.golden.catalogue import Golden, broken, checksums, discard, listing, newest, verify
from mayfly.golden.image import build, make

__all__ = [
    "Golden",
    "broken",
    "build",
    "checksums",
    "discard",
    "listing",
    "make",
    "make_apart",
    "newest",
    "verify",
]
