"""Mayfly as a part of a server: systemd runs the programs that `mayfly up` runs elsewhere.

`apply` is the story, told by the code that has just been put in its place (`code`), so that an
upgrade is done by the new version. What it stands on: `places` (which files where), `units` (the
table of programs as systemd has it), `systemd` (the words it is told), `record` (what was made, by
which `remove` takes it away again), `look` (sees that programs serve) and `lines` (to paste).
"""
