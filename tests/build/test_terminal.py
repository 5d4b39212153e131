"""On a terminal buildx draws as it likes, and the log ends with its last words."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a child does whose stderr is a real terminal: run buildx as flow does, and tell what it kept.
CHILD = """
import asyncio, os, sys
from mayfly.build import progress

BUILD = '''
import os, sys
assert os.isatty(2)
size = os.get_terminal_size(2)
sys.stderr.write(f"\\\\x1b[?25ldrawing {size.columns}x{size.lines}\\\\x1b[?25h")
sys.stderr.write("ERROR: the last\\\\nwords\\\\n")
sys.exit(1)
'''
HISTORY = "import sys; sys.stderr.write('#1 whole log\\\\n')"

async def main():
    stored = bytearray()
    async def append(offset, data):
        stored[offset:] = data
        return len(stored)
    async with progress.uploading(append) as log:
        ran = await progress.run(
            [sys.executable, "-c", BUILD], [sys.executable, "-c", HISTORY], dict(os.environ), log,
            asked="",
        )
    with open(sys.argv[1], "wb") as out:
        out.write(b"%d " % ran.status + stored)

asyncio.run(main())
"""


def test_a_drawn_build_is_passed_on_and_its_log_is_whole(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    child, master = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
        os.execv(sys.executable, [sys.executable, "-c", CHILD, str(kept)])  # noqa: S606
    seen = b""
    try:
        while data := os.read(master, 65536):
            seen += data
    except OSError:  # EIO: the child has gone
        pass
    os.waitpid(child, 0)
    os.close(master)
    assert b"drawing 111x33" in seen
    assert seen.endswith(b"ERROR: the last\r\nwords\r\n")
    assert kept.read_bytes() == b"1 #1 whole log\nERROR: the last\nwords\n"
