"""A person's browser, without a screen and without a network beyond this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: It asks nobody for updates, and finds no host but this one.
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Browser:
    """A window; what it shows is asked for until it is there, or half a minute has gone."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(self, address: str) -> None:
        """Go to a page."""
        self._driver.get("about:blank")  # or another fragment of a page would not be loaded
        self.faults()
        self._driver.get(address)

    def text(self) -> str:
        """What can be read, white space made single."""
        told = self._driver.execute_script("return document.body ? document.body.innerText : ''")
        return " ".join(told.split())

    def sees(self, *texts: str, seconds: float = 30) -> None:
        """Each of the texts is on the page."""
        deadline = time.monotonic() + seconds
        while missing := [text for text in texts if text not in self.text()]:
            assert time.monotonic() < deadline, f"not seen: {missing}; but: {self.text()[:6000]}"
            time.sleep(0.2)

    def click(self, text: str) -> None:
        """Click what bears exactly this text."""
        self.sees(text)
        found = self._driver.find_elements("xpath", f"//*[normalize-space(.)='{text}']")
        # The innermost: what holds it alone bears the same text.
        [one for one in found if one.is_displayed()][-1].click()

    def filled_in(self) -> set[str]:
        """What the fields of the forms hold."""
        fields = self._driver.find_elements("css selector", "input, textarea, select")
        return {field.get_property("value") for field in fields}

    def figures(self) -> list[int]:
        """The widths of the images in pixels of their own; 0 where one could not be loaded."""
        script = "return [...document.images].map(one => one.complete ? one.naturalWidth : 0)"
        return [int(width) for width in self._driver.execute_script(script)]

    def faults(self) -> list[str]:
        """What the page could not load or run, since it was opened or last asked."""
        return [
            one["message"] for one in self._driver.get_log("browser") if one["level"] == "SEVERE"
        ]


@contextmanager
def browser(folder: Path, *, program: str, driver: str) -> Iterator[Browser]:
    """Chromium with an empty profile in a folder."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = program
    flags = [*FLAGS, f"--user-data-dir={folder}"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=Service(driver))
    try:
        yield Browser(opened)
    finally:
        opened.quit()
