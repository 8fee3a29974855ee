"""A real browser (Debian's chromium), driven through chromedriver by the WebDriver protocol."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

# Chromium looks for Google's services at every start unless it is told not to.
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
]


def is_installed():
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """A browser window."""

    def __init__(self, driver, session):
        self.driver, self.session = driver, session

    def open(self, url):
        _call(self.driver, f"/session/{self.session}/url", {"url": url})

    def text(self, selector):
        """Return the text that a person sees in an element."""
        found = _call(self.driver, f"/session/{self.session}/element", {"using": "css selector", "value": selector})
        (element,) = found.values()
        return _call(self.driver, f"/session/{self.session}/element/{element}/text")

    def count(self, selector):
        query = {"using": "css selector", "value": selector}
        return len(_call(self.driver, f"/session/{self.session}/elements", query))

    def wait_for(self, selector, text, seconds=30):
        """Wait until an element shows the text, without loading the page again."""
        end = time.monotonic() + seconds
        while text not in (shown := self.text(selector)):
            if time.monotonic() > end:
                raise AssertionError(f"{selector} shows {shown!r}, not {text!r}")
            time.sleep(0.1)


@contextmanager
def browser(folder, *, scripts=True):
    """Run a browser with a profile of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_ready(driver)
        options = {"args": [*QUIET, f"--user-data-dir={folder}"], "binary": shutil.which("chromium")}
        if not scripts:
            options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        session = _call(driver, "/session", wanted)["sessionId"]
        try:
            yield Browser(driver, session)
        finally:
            _call(driver, f"/session/{session}", method="DELETE")
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(driver):
    end = time.monotonic() + 30
    while True:
        try:
            if _call(driver, "/status")["ready"]:
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise AssertionError("chromedriver does not start")
        time.sleep(0.05)


def _call(driver, path, content=None, method=None):
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(driver + path, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)["value"]
