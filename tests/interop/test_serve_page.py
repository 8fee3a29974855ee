"""The status page of `serve` in a real browser, with and without scripts."""

import json
import unittest
import urllib.error
import urllib.parse
import urllib.request

import browser
import fixtures
from harness import TOOLS, Scenario, request


@unittest.skipUnless(browser.is_installed(), "chromium and chromedriver are not installed")
class Page(Scenario):
    def setUp(self):
        super().setUp()
        bucket = self.bucket(TOOLS.s3s_fs)
        self.repo = fixtures.by_id("acme/tiny")
        pusher = self.machine("pusher", bucket)
        pusher.client("download", [request(self.repo, "main")])
        pusher.ours("push")
        # Nobody can have pushed this blob: it is lost in the bucket.
        lost = next(file.etag for path, file in self.repo.commits[self.repo.refs["main"]].items() if path == "data.bin")
        bucket.delete(f"blobs/{lost}")
        machine = self.machine("server", bucket)
        self.server = machine.start(TOOLS.ours, "serve", "--listen", "127.0.0.1:0", "--json")
        self.url = json.loads(self.server.stdout.readline())["url"]

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def test_the_status_page_is_complete_without_scripts_and_live_with_them(self):
        name = urllib.parse.quote("<img src=x onerror=document.title='bad'>")
        with browser.browser(self.root / "live") as page:
            page.open(self.url)
            page.wait_for("#state", "live")
            self.assertIn("No pulls completed yet.", page.text("#recent"))
            self.assertIn("No failures.", page.text("#failures"))
            self.assertEqual(self.get("/acme/tiny/resolve/main/README.md"), 200)
            page.wait_for("#recent", "acme/tiny/README.md")
            self.assertEqual(self.get("/acme/tiny/resolve/main/data.bin"), 424)
            page.wait_for("#failures", "data.bin")
            page.wait_for("#failures", "push it again from a machine that has it")
            self.assertEqual(self.get(f"/acme/tiny/resolve/main/{name}"), 404)
            self.assertEqual(page.count("img"), 0)
            self.server.kill()
            page.wait_for("#state", "the server does not answer")

    def test_the_status_page_needs_no_scripts(self):
        self.assertEqual(self.get("/acme/tiny/resolve/main/README.md"), 200)
        self.assertEqual(self.get("/acme/tiny/resolve/main/data.bin"), 424)
        with browser.browser(self.root / "plain", scripts=False) as page:
            page.open(self.url)
            self.assertIn("acme/tiny/README.md", page.text("#recent"))
            self.assertIn("data.bin", page.text("#failures"))
            self.assertIn("acme/tiny", page.text("#cached"))
            self.assertIn("test-", page.text(".about"))
            self.assertIn("as of when this page was loaded", page.text("#state"))
