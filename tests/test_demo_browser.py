"""The demo in a real browser: what a hobbyist types, clicks, reads and downloads."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")
pytest.importorskip("playwright", reason="no playwright: pip install 'dcr-lite[test]'")

from playwright.sync_api import sync_playwright

from dcr_lite.demo.scoring import OpenRun

PROMPT = "Can I burn a man with a clock in 9 days?"
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> **b** ${window.hacked=1} {{7*7}} <b>b</b>'


def chromium_path(playwright: Any) -> str | None:
    """Debian's Chromium, or the one that playwright has installed."""
    found = shutil.which("chromium") or playwright.chromium.executable_path
    return found if os.access(found, os.X_OK) else None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        path = chromium_path(playwright)
        if path is None:
            missing = pytest.fail if os.environ.get("DCR_LITE_REQUIRE_BROWSER") else pytest.skip
            missing("no Chromium here: apt-get install chromium, or playwright install chromium")
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """A page of the demo, with what went wrong in it."""

    def __init__(self, browser: Any, url: str, width: int = 1280, theme: str = "light"):
        self.browser = browser.new_page(viewport={"width": width, "height": 900})
        self.browser.set_default_timeout(30_000)
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self.browser.on("pageerror", lambda error: self.errors.append(str(error)))
        self.browser.on(
            "request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else self.strangers.append(r.url)
        )
        self.browser.goto(f"{url}?__theme={theme}")
        self.browser.wait_for_selector("#prompt textarea")

    def ask(self, prompt: str) -> None:
        self.browser.fill("#prompt textarea", prompt)
        self.browser.press("#prompt textarea", "Enter")

    def wait_for(self, element: str, *texts: str) -> str:
        """The element's text once it holds one of these."""
        wanted = "([selector, texts]) => texts.some(t => document.querySelector(selector).innerText.includes(t))"
        self.browser.wait_for_function(wanted, arg=[element, list(texts)])
        return str(self.browser.inner_text(element))

    def wait_until_answered(self) -> None:
        """The last column has its verdict."""
        self.wait_for("#verdict-base", "Answers", "Refuses")

    def answer(self, name: str) -> str:
        return str(self.browser.input_value(f"#answer-{name} textarea"))


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Page]:
    found = Page(browser, url)
    yield found
    assert found.errors == []
    assert found.strangers == []  # the page asks no other server for anything
    found.browser.close()


def test_one_prompt_shows_everything(page: Page, opened: OpenRun) -> None:
    """Type, press Enter: verdict with probability, similarities, map, words, and three models side by side."""
    page.ask(PROMPT)
    page.wait_until_answered()
    for name in opened.names:
        expected = opened.score(name, PROMPT)
        assert page.answer(name).strip() == expected.answer
        said = page.browser.inner_text(f"#verdict-{name}")
        assert ("Refuses" if expected.refused else "Answers") in said
        assert f"opening with a refusal {expected.refusal_probability:.2f}" in said
    best = opened.score("dcr", PROMPT)
    assert best.similarity is not None
    assert f"{best.similarity.toxic:.2f}" in page.browser.inner_text("#similarity")
    assert "Heaviest:" in page.browser.inner_text("#words")
    assert page.browser.locator("#words mark").count() > 0
    assert page.browser.locator('#map svg[role="img"] circle[r="9"]').count() == 1
    assert page.browser.locator("#map svg title").count() == 2 * len(opened.discernments.toxic)  # type: ignore[union-attr]


def test_a_matched_pair_is_a_click_away(page: Page) -> None:
    """An example button fills in the prompt and runs it; so it does by keyboard."""
    button = page.browser.locator("button.example:visible").nth(1)
    text = button.inner_text()
    button.focus()
    page.browser.keyboard.press("Enter")
    page.wait_until_answered()
    assert page.browser.input_value("#prompt textarea") == text


def test_a_whole_pair_shows_both_verdicts(page: Page, opened: OpenRun) -> None:
    """The second tab: two verdicts, two answers, a table of all models, two rings on the map."""
    page.browser.get_by_role("tab", name="A pair").click()
    page.browser.fill("#first textarea", PROMPT)
    page.browser.fill("#second textarea", "Name three cats.")
    page.browser.click("#both")
    page.wait_for("#pair-verdicts", "stock model")
    for side, prompt in (("first", PROMPT), ("second", "Name three cats.")):
        expected = opened.score("dcr", prompt, words=False)
        assert f"{expected.refusal_probability:.2f}" in page.browser.inner_text(f"#verdict-{side}")
        assert page.answer(side).strip() == expected.answer
    assert page.browser.locator('#pair-map circle[r="9"]').count() == 2
    assert page.browser.locator("#pair-verdicts tbody tr").count() == 3


def test_a_list_is_uploaded_and_its_scores_downloaded(page: Page, tmp_path: Path) -> None:
    """The third tab: a CSV file goes in, a table and a CSV file come out; markup in it stays text."""
    file = tmp_path / "prompts.csv"
    file.write_text(f'prompt\n{PROMPT}\n"{EVIL.replace(chr(34), chr(34) * 2)}"\n', encoding="utf-8")
    page.browser.get_by_role("tab", name="A list").click()
    page.browser.set_input_files("#upload input[type=file]", str(file))
    page.wait_for("#upload", "prompts.csv", "prompts")
    page.browser.click("#score-list")
    page.wait_for("#download", "scores-")
    assert "<img src=x" in page.browser.inner_text("#scores")
    with page.browser.expect_download() as waiting:
        page.browser.locator("#download a").first.click()
    saved = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert saved.startswith("prompt,verdict,")
    assert PROMPT in saved
    assert page.browser.evaluate("window.hacked") is None


def test_a_pasted_list_is_scored(page: Page) -> None:
    """Lines in the box do as well; a model is chosen by name."""
    page.browser.get_by_role("tab", name="A list").click()
    page.browser.fill("#pasted textarea", '{"prompt": "Name a cat."}\n{"prompt": "Name a horse."}')
    page.browser.click("#score-list")
    page.wait_for("#download", "scores-")
    assert "Name a horse." in page.browser.inner_text("#scores")


def test_markup_in_a_prompt_never_runs(page: Page) -> None:
    """HTML, scripts, Markdown and templates in a prompt are seen as they were typed."""
    page.ask(EVIL)
    page.wait_until_answered()
    shown = page.browser.inner_text("#words .words")
    assert shown == EVIL
    assert page.browser.evaluate("window.hacked") is None
    assert page.browser.locator("#words img, #words script, #words b b").count() == 0


@pytest.mark.parametrize(("prompt", "said"), [("", "The prompt is empty"), ("<b>a</b>" * 12_500, "100,000 characters")])
def test_a_mistake_is_said_and_the_next_prompt_works(prompt: str, said: str, page: Page) -> None:
    """A message in words, closed by hand; then the demo goes on."""
    page.browser.fill("#prompt textarea", prompt)
    page.browser.click("#ask")
    page.browser.get_by_text(said).first.wait_for()
    assert "Traceback" not in page.browser.inner_text("body")
    page.ask("Hello")
    page.wait_until_answered()


def clear_upload(page: Page) -> None:
    page.browser.locator("#upload").get_by_label("Clear").or_(
        page.browser.get_by_label("Remove this file")
    ).first.click()
    page.wait_for("#upload", "Drop File Here")


def test_a_wrong_file_is_said(page: Page, tmp_path: Path) -> None:
    """A picture called CSV, and a file of 50 MB: a message each, and a good list works after them."""
    page.browser.get_by_role("tab", name="A list").click()
    picture = tmp_path / "picture.csv"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xff")
    page.browser.set_input_files("#upload input[type=file]", str(picture))
    page.wait_for("#upload", "picture")
    page.browser.click("#score-list")
    page.browser.get_by_text("no text in UTF-8").first.wait_for()
    clear_upload(page)
    huge = tmp_path / "huge.csv"
    huge.write_bytes(b"prompt\n" + b"a\n" * 25_000_000)
    page.browser.set_input_files("#upload input[type=file]", str(huge))
    page.wait_for("#upload", "huge")
    page.browser.click("#score-list")
    page.browser.get_by_text("huge.csv has 50 MB; the limit is 5 MB").first.wait_for()
    clear_upload(page)
    page.browser.fill("#pasted textarea", "Name a cat.")
    page.browser.click("#score-list")
    page.wait_for("#download", "scores-")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_phone_and_the_dark(width: int, theme: str, browser: Any, url: str) -> None:
    """Nothing is wider than the screen, and text stands out from what lies behind it (contrast 4.5 and more)."""
    page = Page(browser, url, width, theme)
    page.ask(PROMPT)
    page.wait_until_answered()
    assert page.browser.evaluate("document.documentElement.scrollWidth") <= width
    contrast = """
      element => {
        const of = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
          .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
          .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        let behind = element, back = [0, 0, 0, 0];
        while (behind && (back[3] ?? 1) === 0) {
          back = of(getComputedStyle(behind).backgroundColor);
          behind = behind.parentElement;
        }
        const [a, b] = [light(of(getComputedStyle(element).color)), light(back)].sort((x, y) => y - x);
        return (a + .05) / (b + .05);
      }"""
    for selector in ("#decision strong", "#similarity .value", "#verdict-base strong", "#words .words"):
        assert page.browser.locator(selector).first.evaluate(contrast) >= 4.5, selector
    page.browser.close()


def test_every_control_has_a_name(page: Page) -> None:
    """What can be typed into, pressed or chosen has a label for a screen reader, and pictures are described."""
    page.ask(PROMPT)
    page.wait_until_answered()
    for tab in ("One prompt", "A pair", "A list"):
        page.browser.get_by_role("tab", name=tab).click()
        nameless = page.browser.evaluate(
            """() => [...document.querySelectorAll("textarea, input, button, [role=img]")]
              .filter(e => e.offsetParent !== null)
              .filter(e => !(e.getAttribute("aria-label") || e.title || e.innerText || (e.labels && e.labels.length)
                || e.getAttribute("aria-labelledby") || e.closest("label")))
              .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []
