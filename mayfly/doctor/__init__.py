"""What is wrong with this machine, how to mend it, and how fast builds will be: `mayfly doctor`.

Each check looks at one thing and changes nothing; what it must try out it tries in a namespace or a
temporary folder that is gone afterwards. The rooms: `machine` (what the kernel and its programs
offer), `kept` (what Mayfly has made here), `serving` (what runs), `speed` (what is measured).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from mayfly.config import Config
from mayfly.doctor import kept, machine, serving
from mayfly.doctor.check import Check, State, safely

__all__ = ["Check", "State", "checks"]


def checks(config: Config) -> tuple[Check, ...]:
    """Every check, in the order in which to mend. Raises nothing: a check that fails says why.

    Takes some seconds; the first time under a version of QEMU, half a minute (`speed`).
    """
    inspected = functools.cache(lambda: machine.inspected(config))
    looks: dict[str, Callable[[], Iterable[Check]]] = {
        "root": machine.root,
        "packages": machine.packages,
        "QEMU": lambda: machine.virtualisation(config, inspected()),
        "control groups": machine.control_groups,
        "network": lambda: machine.network(config),
        "DNS": lambda: machine.resolvers(config),
        "clock": lambda: machine.clock(config),
        "tools": lambda: kept.tools(config),
        "state": lambda: kept.state(config),
        "disk": lambda: kept.disk(config),
        "certificates": lambda: kept.certificates(config),
        "golden image": lambda: kept.golden_image(config),
        "twins": lambda: kept.twins(config),
        "template": lambda: kept.template(config, inspected),
        "address": lambda: serving.address(config),
        "farm": lambda: serving.farm(config),
    }
    return tuple(check for name, look in looks.items() for check in safely(name, look))
