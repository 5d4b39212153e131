"""The programs of one machine, started, watched and stopped together: `mayfly up` and `down`.

`lifecycle` is the story. What it stands on: `services` (the table of programs), `supervise` (keeps
them running), `process` (one of them), `launch` (how it gives up its privileges), `preflight` (what
must hold before), `secrets`, `hosts` and `seaweed`.
"""

from mayfly.stack.lifecycle import ServiceStatus, Status, down, running, up

__all__ = ["ServiceStatus", "Status", "down", "running", "up"]
