"""axe-core, of the version and checksum in `package-lock.json`, run in a page."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mayfly.golden import fetch, recipe
from tests.browser.chromium import Page

LOCK = Path(__file__).parent / "package-lock.json"


def script() -> str:
    """The checker, out of a cache or the npm registry."""
    locked = json.loads(LOCK.read_text())["packages"]["node_modules/axe-core"]
    package = recipe.NpmPackage(
        "axe-core", locked["version"], locked["integrity"], "package/axe.min.js", path="axe.min.js"
    )
    cache = Path(os.environ.get("MAYFLY_CACHE", "/var/cache/mayfly")) / "npm"
    cache.mkdir(parents=True, exist_ok=True)
    return fetch.npm_program(package, recipe.load().npm_client, cache, print).read_text()


async def faults(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is now, by all of its rules, a line each.

    The page was opened with its policy out of force (`Page.setBypassCSP`), which axe-core breaks.
    """
    if not await page.ask("typeof axe !== 'undefined'"):
        await page.ask(f"{script()}; true")
    found = await page.ask(
        "axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations.map((v) =>"
        " v.id + ': ' + v.nodes.map((n) => n.html + ' ' + n.failureSummary).join(' | ')))"
    )
    return [str(line) for line in found]
