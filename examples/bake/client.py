"""Asks the server at the given host for a greeting, and says whether it is the right one."""

import sys
import urllib.request

import protocol

host, who = sys.argv[1:]
with urllib.request.urlopen(f"http://{host}:{protocol.PORT}/{who}") as answer:
    said = answer.read().decode()
sys.exit(0 if said == protocol.greeting(who) else f"the server said {said!r}")
