"""The page of a build as people have it: a real browser, an edge and an orchestrator, and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mayfly.client import Client
from mayfly.model import LeaseRequest, Outcome
from mayfly.orchestrator import page
from tests.browser import axe, chromium
from tests.browser.chromium import Page
from tests.orchestrator.leases import KEY
from tests.serving import Serving

pytestmark = pytest.mark.services

REQUEST = LeaseRequest(repo="team/app", ssh_public_key=KEY)

HOSTILE = (
    b"#1 <script>alert(document.cookie)</script><img src=x onerror=alert(1)>\n"
    b"#2 \x1b[31;1mred\x1b[0m \x1b]0;title\x07"
    b"\x1b]8;;https://evil\x1b\\link\x1b]8;;\x1b\\ \x1b(Bplain\n"
    b"#3 10%\r#3 20%\r\n"
    b"#4 \xe2\x80\xaedrawkcab \x00\x07\x7f \xff\xfe\n"
)

WHOLE = "document.body.dataset.log === 'whole'"
TEXT = "document.getElementById('log').textContent"


@pytest.fixture
async def browser(serving: Serving) -> AsyncIterator[Page]:
    async with chromium.page(serving.url, serving.ca) as opened:
        yield opened


async def seen(browser: Page) -> dict[str, Any]:
    """What the page shows."""
    found: dict[str, Any] = await browser.ask(
        "({title: document.title, log: document.getElementById('log').textContent,"
        " note: document.getElementById('note').textContent,"
        " outcome: document.getElementById('outcome').textContent,"
        " facts: [...document.getElementById('facts').children].map((e) => e.textContent),"
        " attempts: [...document.querySelectorAll('#attempts-rows td')].map((e) => e.textContent),"
        " phases: [...document.querySelectorAll('#phases-rows *')].map((e) => e.textContent)})"
    )
    return found


async def build(api: Client, name: str, log: bytes = b"") -> tuple[str, str]:
    """A build that has said `log`: its id and the address of its page."""
    asked = await api.ask(REQUEST, name)
    for start in range(0, len(log), 1 << 20):
        await api.append_log(asked["id"], start, log[start : start + (1 << 20)])
    return asked["id"], asked["page_url"]


async def test_it_shows_the_build_and_takes_nothing_of_it_for_html(
    serving: Serving, browser: Page
) -> None:
    async with serving.client() as api:
        request = LeaseRequest(repo="team/app", ssh_public_key=KEY, ref="<b>main</b>")
        asked = await api.ask(request, "browser")
        lease = asked["id"]
        await api.append_log(lease, 0, HOSTILE[:100])
        await browser.open(asked["page_url"])
        await browser.until(f"{TEXT}.includes('#1')")
        # In pieces that cut an escape sequence and a character in two.
        for start in range(100, len(HOSTILE), 7):
            await api.append_log(lease, start, HOSTILE[start : start + 7])
        await browser.until(f"{TEXT}.includes('#3')")
        await api.end(lease, Outcome.CANCELLED)
        await browser.until(f"{WHOLE} && document.title.endsWith('cancelled')")
        live = await seen(browser)
        await browser.open("about:blank")
        await browser.open(asked["page_url"])
        await browser.until(f"{WHOLE} && document.title.endsWith('cancelled')")
        assert live == await seen(browser), "the page of a build that ended is the same"
    assert live["log"].splitlines() == [
        "#1 <script>alert(document.cookie)</script><img src=x onerror=alert(1)>",
        "#2 red link plain",
        "#3 10%",
        "#3 20%",
        "#4 \ufffddrawkcab \ufffd\ufffd\ufffd \ufffd\ufffd",
    ]
    assert live["title"] == f"team/app {lease}: cancelled"
    assert live["outcome"].startswith("cancelled: ended by")
    facts = dict(zip(live["facts"][::2], live["facts"][1::2], strict=True))
    assert facts["ref"] == "<b>main</b>"
    assert facts["repo"] == "team/app"
    assert live["attempts"][:2] == ["small", "cancelled"]
    assert "queue" in live["phases"]
    assert live["note"] == ""
    assert browser.errors == []


async def test_one_that_may_not_be_seen_says_so(serving: Serving, browser: Page) -> None:
    async with serving.client() as api:
        lease, _ = await build(api, "other")
        await api.end(lease, Outcome.CANCELLED)
    said = "document.getElementById('note').textContent"
    await browser.open(page.address(serving.url, lease, serving.token))
    await browser.until("document.title.endsWith('cancelled')")
    await browser.open("about:blank")
    await browser.open(page.address(serving.url, lease))
    await browser.until(f"{said}.startsWith('no token. Open the whole address that')")
    await browser.open("about:blank")
    await browser.open(page.address(serving.url, "nosuch<b>", serving.token))
    await browser.until(f"{said}.includes('nosuch')")
    found = await seen(browser)
    assert (found["log"], found["facts"]) == ("", [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_anybody_can_use_it(serving: Serving, browser: Page, scheme: str) -> None:
    """By all rules of axe-core: while it runs, when it failed, and when it may not be seen."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    await browser.call("Emulation.setEmulatedMedia", features=[feature])
    await browser.call("Page.setBypassCSP", enabled=True)
    async with serving.client() as api:
        lease, address = await build(api, f"axe-{scheme}", b"#1 one\n" * 2000)
        await browser.open(address)
        await browser.until(f"{TEXT}.length === 14000")
        assert await axe.faults(browser) == []
        await api.end(lease, Outcome.CANCELLED)
        await browser.until(f"{WHOLE} && document.title.endsWith('cancelled')")
        assert await axe.faults(browser) == []
    await browser.open("about:blank")
    await browser.open(page.address(serving.url, lease))
    await browser.until("document.getElementById('note').textContent !== ''")
    assert await axe.faults(browser) == []


async def test_it_says_how_a_build_ended_once_and_no_line_of_its_log(
    serving: Serving, browser: Page
) -> None:
    """What a screen reader is told: the live regions, and how often each changes."""
    async with serving.client() as api:
        lease, address = await build(api, "spoken", b"one\n")
        await browser.open(address)
        await browser.until(f"{TEXT} === 'one\\n' && document.title.includes(':')")
        await browser.ask(
            "globalThis.spoken = [];"
            "for (const e of document.querySelectorAll('[role], [aria-live]'))"
            " new MutationObserver(() => spoken.push(e.textContent)).observe(e,"
            " {childList: true, characterData: true, subtree: true}); true"
        )
        before = await browser.ask("document.getElementById('outcome').textContent")
        for number in range(5):
            await api.append_log(lease, 4 + 4 * number, b"two\n")
        await browser.until(f"{TEXT}.length === 24")
        await api.end(lease, Outcome.CANCELLED)
        await browser.until(f"{WHOLE} && document.title.endsWith('cancelled')")
        spoken = await browser.ask("spoken")
    outcomes = [text for text in spoken if text != before]
    assert len(outcomes) == len(set(outcomes)), "nothing is said twice"
    assert outcomes[-1].startswith("cancelled")
    assert not any("two" in text for text in spoken)
    assert await browser.ask(
        "[...document.querySelectorAll('h1, h2')].map((h) => h.tagName).join()"
    )


async def test_it_is_used_with_the_keyboard_alone(serving: Serving, browser: Page) -> None:
    async with serving.client() as api:
        lease, address = await build(api, "keys", b"a line of the log\n" * 5000)
        await api.end(lease, Outcome.CANCELLED)
    await browser.open(address)
    await browser.until(WHOLE)
    below = "document.scrollingElement.scrollTop"
    await browser.until(f"{below} > 10000")  # it follows the end
    reached = []
    for _ in range(4):
        await browser.press("Tab", 9)
        reached.append(await browser.ask("document.activeElement.id"))
    assert reached == ["follow", "begin", "end", "save"]
    await browser.ask("document.getElementById('begin').focus()")
    await browser.press("Enter", 13, "\r")
    await browser.until(f"{below} < 2000")
    assert not await browser.ask("document.getElementById('follow').checked")
    await browser.ask("document.getElementById('end').focus()")
    await browser.press("Enter", 13, "\r")
    await browser.until(f"{below} > 10000")
    await browser.ask("document.activeElement.blur()")
    await browser.press("Home", 36)
    await browser.until(f"{below} === 0 && !document.getElementById('follow').checked")


async def test_a_log_of_200_000_lines_leaves_the_page_alive(
    serving: Serving, browser: Page
) -> None:
    """It comes in many small steps between which the page is drawn and answers; few lines are laid
    out, all of them are there to be found.
    """
    log = b"".join(
        b"#%d a line of the log of a build, as long as most\n" % n for n in range(200_000)
    )
    async with serving.client() as api:
        lease, address = await build(api, "long", log)
        await api.end(lease, Outcome.CANCELLED)
    await browser.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="globalThis.frames = 0;"
        "(() => {"
        "const beat = () => { if (document.body && !document.body.dataset.log) frames += 1;"
        "requestAnimationFrame(beat) }; requestAnimationFrame(beat) })();"
        "addEventListener('contentvisibilityautostatechange',"
        "(e) => { e.target.seen = !e.skipped }, true);",
    )
    await browser.open(address)
    await browser.until(WHOLE)
    assert await browser.ask("frames") > 5, "it is drawn while the log comes"
    assert await browser.ask(f"{TEXT}.length") == len(log)
    assert await browser.ask("document.getElementsByTagName('*').length") < 1500
    await browser.until("document.scrollingElement.scrollTop > 1e6")
    blocks = "[...document.querySelectorAll('pre')].filter((e) => e.seen).length"
    await browser.until(f"{blocks} > 0")
    assert await browser.ask(blocks) < 20
    assert await browser.ask("find('#123456 a line')"), "the browser's own search finds a line"
    assert browser.errors == []


async def test_a_flood_is_bounded_and_its_end_is_kept(serving: Serving, browser: Page) -> None:
    """Empty lines, a line without end: no more than so many blocks, each of bounded size."""
    log = b"first\n" + b"\n" * 600_000 + b"x" * 3_000_000 + b"\nlast\n"
    async with serving.client() as api:
        lease, address = await build(api, "flood", log)
        await api.end(lease, Outcome.CANCELLED)
        await browser.open(address)
        await browser.until(WHOLE)
        assert await browser.ask(f"{TEXT}.endsWith('x\\nlast\\n')")
        assert not await browser.ask(f"{TEXT}.startsWith('first')")
        sizes = await browser.ask(
            "[...document.querySelectorAll('pre')].map((e) => e.textContent.length)"
        )
        assert len(sizes) <= 1200
        assert max(sizes) <= 65536
        assert "The beginning of the log is left out" in (await seen(browser))["note"]


async def test_the_whole_log_is_saved_as_it_is(
    serving: Serving, browser: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    await browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    async with serving.client() as api:
        lease, address = await build(api, "saved", HOSTILE)
        await browser.open(address)
        await browser.until(f"{TEXT}.includes('#4')")
        await browser.ask("document.getElementById('save').click()")
        async with asyncio.timeout(30):
            saved = folder / f"{lease}.log"
            while not (saved.exists() and saved.stat().st_size >= len(HOSTILE)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await api.end(lease, Outcome.CANCELLED)
    assert (folder / f"{lease}.log").read_bytes() == HOSTILE
    assert browser.errors == []
