"""The golden image that runners start from: recipe -> root -> disk, dated, with a manifest.

build(state, …) -> Golden     make today's, unless nothing changed
listing(state), newest(state) what is there
verify(golden)                are the bytes still those of the manifest
"""

from mayfly.golden.build import build, site_certificates
from mayfly.golden.catalogue import Golden, listing, newest, verify

__all__ = ["Golden", "build", "listing", "newest", "site_certificates", "verify"]
