"""A real browser without a screen, and what can be asked of a page in it."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DRAWN_S = 60

# The texts of all charts that cover each other, or reach beyond the drawing.
OVERLAPS = """
const found = [];
for (const chart of document.querySelectorAll(".chart")) {
  const frame = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll("svg.main-svg text")]
    .filter((t) => t.textContent.trim() && getComputedStyle(t).opacity !== "0")
    .map((t) => [t.textContent, t.getBoundingClientRect()])
    .filter(([, r]) => r.width && r.height);
  for (const [text, r] of texts)
    if (r.left < frame.left - 1 || r.right > frame.right + 1 || r.bottom > frame.bottom + 2
        || r.top < frame.top - 2)
      found.push([chart.id, text, "is cut off"]);
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length; j++) {
      const [a, p] = texts[i], [b, q] = texts[j];
      const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (across > 1 && down > 3) found.push([chart.id, a, b]);
    }
}
return found;
"""
WIDER = """
const wide = document.documentElement.clientWidth;
const found = [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest(".scroll, pre, .skip, .unseen, svg"))
  .filter((e) => e.getBoundingClientRect().right > wide + 1)
  .map((e) => e.tagName + "#" + e.id + "." + e.className);
return [document.documentElement.scrollWidth - wide, found.slice(0, 10)];
"""
UNDRAWN = """
return [...document.querySelectorAll(".chart")]
  .filter((c) => !c.querySelector(".scatterlayer .trace, .barlayer .trace, .heatmaplayer image"))
  .map((c) => c.id);
"""


READY = "return !document.getElementById('charts') || document.documentElement.dataset.drawn"


class Browser:
    """Chromium, with its console and its network watched."""

    def __init__(self, profile: Path) -> None:
        from selenium.webdriver import Chrome
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = str(CHROMIUM)
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver: Any = Chrome(options=options, service=Service(str(DRIVER)))

    def open(self, path: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Open a report and wait until all of its charts are drawn."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # of the page before
        self.driver.get(path.resolve().as_uri())
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, DRAWN_S).until(lambda driver: driver.execute_script(READY))

    def ask(self, script: str) -> Any:
        """What a script of the page's returns."""
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        """The console's messages."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Whatever the page has asked for, and was not in it."""
        log = self.driver.get_log("performance")
        entries = [json.loads(entry["message"])["message"] for entry in log]
        urls = [
            entry["params"]["request"]["url"]
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]
        page = self.driver.current_url
        return [url for url in urls if url != page and not url.startswith("data:")]

    def photograph(self, path: Path) -> Path:
        """The whole page as a picture."""
        height = self.ask("return document.documentElement.scrollHeight")
        width = self.ask("return document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser that is closed in the end."""
    opened = Browser(profile)
    try:
        yield opened
    finally:
        opened.driver.quit()
