"""Pages in a real browser, without a network."""

from __future__ import annotations

from pathlib import Path


def open_page(browser, page, width=1300, scheme="light"):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, problems = context.new_page(), []
    tab.on("console", lambda m: m.type == "error" and problems.append(m.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    local = ("file:", "data:", "blob:")
    tab.on("request", lambda r: r.url.startswith(local) or problems.append(r.url))
    tab.goto(Path(page).as_uri())
    tab.wait_for_selector("html[data-ready=yes]", timeout=60_000)
    return tab, problems
