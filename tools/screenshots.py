"""Open pages in headless Chromium at desktop and phone width, light and dark; save screenshots and list problems.

    python tools/screenshots.py OUT_FOLDER PAGE.html [PAGE.html ...]

Exit code 1 when a page writes to its console, requests anything but itself, is wider than the screen at any of several
widths, has an axis beyond 100 %, or when a tooltip or a slider does not work.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

SCREENS = {"desktop": (1280, 900, 1), "phone": (390, 844, 2)}
WIDTHS = (320, 400, 640, 641, 768, 900, 901, 1024, 1280, 1920)  # pixels, around those at which the layout changes
# Charts are canvases: the labels of their axes are known only while they are drawn.
RECORD_TEXTS = """
window.texts = [];
const fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
  window.texts.push(text);
  return fillText.call(this, text, ...rest);
};
"""
# Focus every image in turn by arrow keys; return what is wrong with the tooltips.
TOOLTIPS = """(() => {
  const tip = document.getElementById("tip"), found = [];
  const check = (tile) => {
    const box = tip.getBoundingClientRect();
    if (tip.hidden || tip.textContent !== tile.dataset.tip) found.push(`no tooltip of ${tile.alt}`);
    else if (box.left < 0 || box.right > innerWidth || box.top < 0 || box.bottom > innerHeight)
      found.push(`the tooltip of ${tile.alt} is outside of the window`);
  };
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  for (const card of document.querySelectorAll(".strips, .clusters")) {
    const stops = card.querySelectorAll(".tile[tabindex='0']");
    if (stops.length !== 1) found.push(`${stops.length} stops of the Tab key in a card of images`);
    for (const row of card.querySelectorAll(".tiles")) {
      const tiles = [...row.querySelectorAll(".tile")];
      if (row === card.querySelector(".tiles")) tiles[0].focus();
      else { press("ArrowDown"); for (const _ of tiles) press("ArrowLeft"); }
      for (const tile of tiles) {
        if (document.activeElement !== tile) found.push(`arrow keys do not reach ${tile.alt}`);
        check(tile);
        press("ArrowRight");
      }
    }
    press("Escape");
    if (!tip.hidden) found.push("Escape does not hide the tooltip");
  }
  document.activeElement.blur();
  return [...new Set(found)].slice(0, 5);
})()"""
# Move every slider to its start and back; return those that change nothing.
SLIDERS = """(async () => {
  let stuck = 0;
  for (const slider of document.querySelectorAll("input.frames")) {
    const texts = [];
    for (const value of [slider.max, 0, slider.max]) {
      slider.value = value;
      slider.dispatchEvent(new Event("input"));
      await new Promise((done) => setTimeout(done, 50));  // charts are drawn later
      texts.push(slider.parentElement.querySelector(".readout").textContent);
    }
    if (texts[0] === texts[1] || texts[0] !== texts[2]) stuck++;
  }
  return stuck;
})()"""
MAX_HEIGHT = 14000  # pixels of a screenshot


class Chromium:
    """A browser driven by the DevTools protocol through a pipe."""

    def __init__(self, binary: str, profile: str) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [
            binary,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--hide-scrollbars",
        ]
        command += [f"--user-data-dir={profile}", "about:blank"]

        def move_pipes() -> None:  # Chromium reads from descriptor 3 and writes to 4
            read, write = os.dup(to_read), os.dup(to_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=move_pipes)
        os.close(to_read)
        os.close(to_write)
        self._numbers, self._unread = count(1), b""
        self.events: list[dict] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=RECORD_TEXTS)

    def ask(self, method: str, **parameters) -> dict:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression: str):
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def _next(self) -> dict:
        while b"\0" not in self._unread:
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("chromium exited")
            self._unread += data
        answer, _, self._unread = self._unread.partition(b"\0")
        return json.loads(answer)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._read)
        os.close(self._write)


def check(chromium: Chromium, page: Path, screen: str, scheme: str, out: Path) -> list[str]:
    """Save OUT/NAME-SCREEN-SCHEME.png; return the problems, a line each."""
    width, height, scale = SCREENS[screen]
    chromium.events.clear()
    for domain in ("Page", "Runtime", "Log", "Network"):
        chromium.ask(f"{domain}.enable")
    chromium.events.clear()
    chromium.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": screen == "phone"}
    chromium.ask("Emulation.setDeviceMetricsOverride", **metrics)
    chromium.ask("Page.navigate", url=page.resolve().as_uri())
    chromium.wait_for("Page.loadEventFired")
    chromium.evaluate("new Promise(done => setTimeout(done, 400))")
    problems = []
    for event in chromium.events:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            problems.append(f"exception: {parameters['exceptionDetails'].get('exception', {}).get('description')}")
        if event.get("method") == "Log.entryAdded":
            problems.append(f"console: {parameters['entry']['text']}")
        if event.get("method") == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith("data:") and url != page.resolve().as_uri():
                problems.append(f"requests {url:.80}")
    labels = chromium.evaluate(
        "window.texts.filter(t => t.endsWith('%') && !(parseFloat(t) >= 0 && parseFloat(t) <= 100))"
    )
    problems += [f"an axis of shares has {label}" for label in sorted(set(labels))]
    problems += chromium.evaluate(TOOLTIPS)
    if stuck := chromium.evaluate(SLIDERS):
        problems.append(f"{stuck} sliders change nothing, or do not change back")
    chromium.evaluate("scrollTo(0, 0)")
    height = min(MAX_HEIGHT // scale, chromium.evaluate("document.documentElement.scrollHeight"))
    picture = chromium.ask(
        "Page.captureScreenshot",
        captureBeyondViewport=True,
        clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
    )
    path = out / f"{page.parent.name}-{page.stem}-{screen}-{scheme}.png"
    path.write_bytes(base64.b64decode(picture["data"]))
    print(path)
    for width in WIDTHS:
        chromium.ask("Emulation.setDeviceMetricsOverride", **metrics | {"width": width})
        chromium.evaluate("new Promise(done => setTimeout(done, 100))")
        needed = chromium.evaluate("document.documentElement.scrollWidth")
        if needed > width:
            wide = chromium.evaluate(
                "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
                ".slice(0, 5).map(e => e.tagName + '.' + e.className).join(' ')"
            )
            problems.append(f"is {needed} px wide in a window of {width} px: {wide}")
    return [f"{page} on {screen}, {scheme}: {line}" for line in problems]


def main() -> int:
    out, pages = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        print("neither chromium nor google-chrome is installed")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = Chromium(binary, profile)
        try:
            problems = [
                line
                for page in pages
                for screen in SCREENS
                for scheme in ("light", "dark")
                for line in check(chromium, page, screen, scheme, out)
            ]
        finally:
            chromium.close()
    for line in problems:
        print(line)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
