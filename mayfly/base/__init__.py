"""Base images out of Debian packages, for machines that cannot reach the usual registries.

make_base(kind, out, …)         an OCI layout folder with one image; `KINDS` says which there are
push(layout, reference, …)      to a registry, by skopeo
platforms(texts)                those that `--platform` names; `PLATFORMS` says which there are
publish(config, kind, …)        both, to this machine's registry, unless it is there
"""

from mayfly.base.kinds import KINDS
from mayfly.base.make import known, make_base
from mayfly.base.platform import PLATFORMS
from mayfly.base.platform import parse as platforms
from mayfly.base.publish import Published, publish
from mayfly.base.push import push

__all__ = ["KINDS", "PLATFORMS", "Published", "known", "make_base", "platforms", "publish", "push"]
