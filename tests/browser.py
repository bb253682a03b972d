"""A page in a real browser: what it looks like there, told by the page itself."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
needed = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
LAPTOP, PHONE = (1366, 768), (390, 844)  # pixels

# What every page is asked: its width and its frame's, pictures, and what it took from elsewhere.
ASK = """
<script>
window.addEventListener("load", function () {
  var answer = {}, root = document.documentElement;
  %s
  answer.width = [root.scrollWidth, root.clientWidth];
  answer.images = Array.from(document.images).map(
    i => [i.naturalWidth, i.getBoundingClientRect().width]);
  answer.requests = performance.getEntriesByType("resource").map(r => r.name).filter(
    n => !n.startsWith("data:"));
  parent.postMessage(JSON.stringify(answer), "*");
});
</script>
"""
# In a frame: a window of Chromium's is at least 500 pixels wide.
FRAME = """
<body><script>
window.addEventListener("message", function (event) {
  document.body.textContent = "ANSWER" + event.data + "ANSWER";
});
</script><iframe src="asking.html" width="%d" height="%d" frameborder="0"></iframe></body>
"""


def ask(page: Path, folder: Path, window: tuple[int, int] = LAPTOP, script: str = "") -> dict:
    """What the page answers in a window of this size; `script` may add to its `answer`."""
    text = page.read_text(encoding="utf-8")
    asking, frame = folder / "asking.html", folder / "frame.html"
    asking.write_text(text.replace("</body>", f"{ASK % script}</body>"), encoding="utf-8")
    frame.write_text(FRAME % window, encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1500,1000",
        "--dump-dom",
        f"--user-data-dir={folder}/u",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=5000",
        frame.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)
    return json.loads(html.unescape(done.stdout.split("ANSWER")[-2]))
