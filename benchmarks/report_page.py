"""How large a report is, and how long headless Chromium takes until everything in it is drawn.

`python benchmarks/report_page.py EVALUATION [TIMES]`, where EVALUATION is the folder of an evaluation, or an h5ad.
Needs chromium and chromedriver. Blank is a page without content, opened the same way in the same run.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver

from histoflow import report

READY = "return document.documentElement.dataset.ready"
BLANK = "<!doctype html><title>blank</title><script>document.documentElement.dataset.ready = true</script>"


def opened(page: Path) -> tuple[float, list[str]]:
    """Seconds from asking for a page until it says that it is ready, and what it asked for outside of files."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        start = time.perf_counter()
        browser.get(page.as_uri())
        while browser.execute_script(READY) != "true":
            time.sleep(0.01)
        taken = time.perf_counter() - start
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    finally:
        browser.quit()
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return taken, [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def main() -> None:
    """Write the report, and open it and a blank page in turn."""
    source, times = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        page = report(source, Path(folder) / "report.html")
        print(f"written in {time.perf_counter() - start:.1f} s, {page.stat().st_size / 1e6:.2f} MB")
        blank = Path(folder) / "blank.html"
        blank.write_text(BLANK)
        seconds = {path.stem: [] for path in (page, blank)}
        for _ in range(times):
            for path in (page, blank):
                taken, outside = opened(path)
                seconds[path.stem].append(taken)
                print(f"{path.stem}: {taken:.2f} s, {len(outside)} requests outside {outside}")
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"median of {times}: {medians['report']:.2f} s, a blank page {medians['blank']:.2f} s")


if __name__ == "__main__":
    main()
