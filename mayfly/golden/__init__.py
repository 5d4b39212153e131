"""The golden image that runners start from: recipe -> root -> disk, dated, with a manifest.

make(config, …) -> Golden      today's, unless nothing changed (`build` with what it says)
listing(state), newest(state) what is there
verify(golden)                are the bytes still those of the manifest
"""

from mayfly.golden.catalogue import Golden, listing, newest, verify
from mayfly.golden.image import build, make

__all__ = ["Golden", "build", "listing", "make", "newest", "verify"]
