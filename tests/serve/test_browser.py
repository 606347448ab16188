"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from serve_app import pixels_of, png, server

pytest.importorskip("gradio", reason="needs cmmfnet[serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from cmmfnet import Colorizer  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
WAIT = 60_000
DROP = """async ([name, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  const zone = document.querySelector(".zone");
  for (const kind of ["dragenter", "dragover", "drop"])
    zone.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def scene() -> np.ndarray:
    """Counts of a ground below a colder sky, with a warm box."""
    counts = np.full((96, 128), 29000, np.uint16)
    counts[:40] -= 800
    counts[50:70, 40:80] += 500
    return counts + np.arange(128, dtype=np.uint16)


@pytest.fixture(scope="module")
def address():
    with server(model="cmmfnet") as (_, where):
        yield where


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(address, chromium):
    """A page that fails the test on an error in its console, or a request to elsewhere."""
    context = chromium.new_context(accept_downloads=True)
    tab = context.new_page()
    tab.set_default_timeout(WAIT)
    problems: list[str] = []
    tab.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else 0)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on(
        "request",
        lambda r: None if r.url.startswith((address, "data:", "blob:")) else problems.append(r.url),
    )
    # the test chooses this file whenever the page asks for one
    file = {"name": "house.png", "mimeType": "", "buffer": png(scene())}
    tab.on("filechooser", lambda asked: asked.set_files(file))
    tab.on("response", lambda r: problems.append(r.url) if r.status >= 400 else None)
    tab.goto(address)
    tab.wait_for_selector(".zone[data-ready]")
    yield tab
    context.close()
    assert problems == []


def caption(tab, text: str) -> str:
    """The caption of the result, once it holds a text."""
    tab.wait_for_function(
        "t => document.querySelector('#result')?.textContent.includes(t)", arg=text
    )
    return tab.text_content("#result figcaption")


def downloaded(tab) -> np.ndarray:
    with tab.expect_download() as waiting:
        tab.click("#result .download")
    assert waiting.value.suggested_filename == "house-colour.png"
    return pixels_of(waiting.value.path().read_bytes())


def test_drop_a_file_type_a_text_remove_a_tag_move_the_slider_download(page):
    colorizer = Colorizer.from_pretrained("cmmfnet", device="cpu")
    page.evaluate(DROP, ["house.png", list(png(scene()))])
    assert "128 × 96" in caption(page, "house.png")
    expected, _ = colorizer(scene(), return_tags=True)
    np.testing.assert_array_equal(downloaded(page), expected)

    page.fill("#text textarea, #text input", "a red car")
    page.press("#text textarea, #text input", "Enter")
    assert "Text: a red car" in caption(page, "Text: a red car")
    np.testing.assert_array_equal(downloaded(page), colorizer(scene(), text="a red car"))

    page.fill("#text textarea, #text input", "")
    chip = page.locator("#chips input:checked").first
    name = chip.get_attribute("name") or chip.get_attribute("value")
    chip.uncheck()
    text = re.search(r"Text: (-\S+)\.", caption(page, "Text: -"))[1]
    assert name is None or name in text
    np.testing.assert_array_equal(downloaded(page), colorizer(scene(), text=text))

    box = page.locator("#result .frames").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.up()
    assert slider(page) > 80
    shot = Image.open(io.BytesIO(page.locator("#result .frames").screenshot())).convert("RGB")
    left = np.asarray(shot.crop((10, 10, int(0.7 * shot.width), shot.height - 10)), int)
    assert np.abs(left - left.mean(axis=2, keepdims=True)).mean() < 2  # the grey thermal frame


def slider(tab) -> float:
    return float(
        tab.evaluate("parseFloat(document.querySelector('.compare').style.cssText.slice(5))")
    )


def tab_to(tab, selector: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"the Tab key does not reach {selector}")


def test_the_keyboard_alone_suffices(page):
    tab_to(page, ".zone input")
    page.keyboard.press("Enter")
    caption(page, "house.png")
    tab_to(page, "#result input[type=range]")
    before = slider(page)
    page.keyboard.press("ArrowRight")
    assert slider(page) > before
    tab_to(page, "#result .download")
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    assert pixels_of(waiting.value.path().read_bytes()).shape == (96, 128, 3)
    tab_to(page, "#text textarea, #text input")
    page.keyboard.type("snow")
    page.keyboard.press("Enter")
    caption(page, "Text: snow")
    tab_to(page, "#chips input")
    page.keyboard.press("Space")
    caption(page, "Text: snow ")


def test_a_file_is_removed_and_a_broken_one_named(page):
    page.set_input_files(
        ".zone input",
        [
            {"name": "house.png", "mimeType": "", "buffer": png(scene())},
            {"name": "broken.png", "mimeType": "", "buffer": b"hello"},
        ],
    )
    caption(page, "house.png")
    page.click("text=broken.png")
    page.wait_for_selector(".problem")
    assert "broken.png" in page.text_content(".problem")
    with page.expect_response(lambda r: r.request.method == "DELETE" and r.status == 204):
        page.click("[aria-label='remove broken.png']")
    caption(page, "house.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(address, chromium, scheme):
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, is_mobile=True, has_touch=True
    )
    tab = context.new_page()
    tab.set_default_timeout(WAIT)
    tab.goto(address)
    tab.tap(".sample")
    caption(tab, "street.png")
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert tab.evaluate(wide)
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (np.mean([float(x) for x in re.findall(r"[\d.]+", background)[:3]]) < 128) == (
        scheme == "dark"
    )
    context.close()
