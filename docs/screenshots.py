"""The pictures of the HTML report in the documentation, of the demo's report unless you name another one.

    python docs/screenshots.py [RESULTS.html]

It needs Chromium. Without a page it runs `lorastudy demo` first, which takes about a minute.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INTO = Path(__file__).resolve().parent / "images"
#: A browser without a head makes no narrower window, so a narrower page stands in a frame.
_NARROWEST = 500


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the top of the page."""

    name: str
    width: int
    height: int
    is_dark: bool = False


PICTURES = (
    Picture(name="report-desk", width=1440, height=1180),
    Picture(name="report-dark", width=1440, height=900, is_dark=True),
    Picture(name="report-phone", width=390, height=1000),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pictures and say where."""
    parser = argparse.ArgumentParser(prog="python docs/screenshots.py")
    parser.add_argument("page", type=Path, nargs="?", help="the page; by default the demo's")
    parser.add_argument("--into", type=Path, default=INTO, help="the folder of the pictures")
    chosen = parser.parse_args(arguments)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    chosen.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = _demo(folder) if chosen.page is None else chosen.page.resolve()
        for picture in PICTURES:
            taken = _taken(picture, page, browser=browser, folder=folder)
            file = chosen.into / f"{picture.name}.png"
            taken.convert("RGB").save(file, optimize=True)
            print(f"wrote {file} ({file.stat().st_size / 1024:.0f} KiB)")
    return 0


def _demo(folder: Path) -> Path:
    subprocess.run([Path(sys.executable).with_name("lorastudy"), "demo"], cwd=folder, check=True)  # noqa: S603 - our own program, an argument list
    return folder / "RESULTS.html"


def _taken(picture: Picture, page: Path, *, browser: str, folder: Path) -> Image.Image:
    shown, file = page, folder / "picture.png"
    if picture.width < _NARROWEST:
        shown = folder / "frame.html"
        frame = f'<iframe src="{page.as_uri()}" width="{picture.width}" height="{picture.height}" style="border: 0"></iframe>'
        shown.write_text(f'<!doctype html><body style="margin: 0">{frame}</body>', encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if picture.is_dark else 1}",
        f"--window-size={max(picture.width, _NARROWEST)},{picture.height}",
        "--virtual-time-budget=20000",
        f"--screenshot={file}",
    ]
    command = [browser, *options, shown.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - a browser, an argument list
    with Image.open(file) as whole:
        return whole.crop((0, 0, picture.width, picture.height))


if __name__ == "__main__":
    sys.exit(main())
