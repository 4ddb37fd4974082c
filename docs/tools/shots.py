"""Pictures of the pages of a site in Chromium, wide and narrow.

    python docs/tools/shots.py SITE FOLDER [PAGE ...]

Says, too, which pages are wider than the window, and what their scripts complain of.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTHS = {"wide": 1400, "narrow": 390}


def main(site: Path, folder: Path, only: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    pages = sorted(site.rglob("*.html"))
    wrong = 0
    with sync_playwright() as playwright:
        # the system's, if there is one; else what `playwright install chromium` has downloaded
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, width in WIDTHS.items():
            for scheme in ("light", "dark") if name == "wide" else ("light",):
                page = browser.new_page(
                    viewport={"width": width, "height": 1000}, color_scheme=scheme
                )
                for path in pages:
                    stem = str(path.relative_to(site).with_suffix("")).replace("/", "-")
                    if only and stem not in only:
                        continue
                    complaints: list[str] = []
                    page.on("pageerror", lambda error, into=complaints: into.append(str(error)))
                    page.goto(path.absolute().as_uri())
                    page.screenshot(path=folder / f"{stem}-{name}-{scheme}.png", full_page=True)
                    over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                    if over > 0:
                        complaints.append(f"{over} pixels wider than the window")
                    for complaint in complaints:
                        print(f"{stem}, {name}: {complaint}")
                    wrong += len(complaints)
        browser.close()
    return wrong


if __name__ == "__main__":
    site, folder, *only = sys.argv[1:]
    sys.exit(main(Path(site), Path(folder), only) > 0)
