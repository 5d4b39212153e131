"""The page of a build for people: one static file, the same for every build, that knows nothing.

What it shows it asks the API for, with the token in the fragment of its address, which browsers
send to nobody: it is in no server's log and in no Referer. The page may therefore be had without a
token, and runs nothing but its own script (by its hash), loads nothing, takes no text for HTML
(trusted types, where the browser knows them), and is in nobody's frame.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

HTML = Path(__file__).with_suffix(".html").read_text()


def _hashed(element: str) -> str:
    """The `'sha256-…'` of the page's one `element`, as a content security policy names it."""
    (text,) = re.findall(rf"<{element}>(.*?)</{element}>", HTML, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_hashed('script')}; style-src {_hashed('style')}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def address(url: str, build: str, token: str = "") -> str:
    """Where the page of a build is, at a farm's `url`; without a token it shows nothing."""
    return f"{url}/builds/{build}" + (f"#token={quote(token, safe='')}" if token else "")
