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

# What every page is asked: its width and the window's, pictures, and what it took from elsewhere.
ASK = """
<script>
window.addEventListener("load", function () {
  var answer = {};
  %s
  answer.width = [document.documentElement.scrollWidth, window.innerWidth];
  answer.images = Array.from(document.images).map(
    i => [i.naturalWidth, i.getBoundingClientRect().width]);
  answer.requests = performance.getEntriesByType("resource").map(r => r.name).filter(
    n => !n.startsWith("data:"));
  document.body.innerHTML = "<pre>ANSWER" + JSON.stringify(answer) + "ANSWER</pre>";
});
</script>
"""


def ask(page: Path, folder: Path, window: tuple[int, int] = LAPTOP, script: str = "") -> dict:
    """What the page answers in a window of this size; `script` may add to its `answer`."""
    asking = folder / f"asking_{window[0]}.html"
    text = page.read_text(encoding="utf-8")
    asking.write_text(text.replace("</body>", f"{ASK % script}</body>"), encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={window[0]},{window[1]}",
        "--dump-dom",
        f"--user-data-dir={folder}/u",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=5000",
        asking.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(done.stdout.split("ANSWER")[1]))
