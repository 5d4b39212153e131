"""Base images out of Debian packages, for machines that cannot reach the usual registries.

make_base(kind, out, …)         an OCI layout folder with one image; `KINDS` says which there are
push(layout, reference, …)      to a registry, by skopeo
publish(config, kind, …)        both, to this machine's registry, unless it is there
"""

from mayfly.base.make import KINDS, make_base
from mayfly.base.publish import Published, publish
from mayfly.base.push import push

__all__ = ["KINDS", "Published", "make_base", "publish", "push"]
