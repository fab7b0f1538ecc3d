"""The demo in a real browser: what a user types, clicks, reads and downloads."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")
pytest.importorskip("playwright", reason="no playwright: pip install 'dcr-lite[test]'")

from playwright.sync_api import expect, sync_playwright
from prepared_mending import mark_all, mended_run, prepare

from dcr_lite.data.marks import read_marks
from dcr_lite.demo.blocks import build, launch
from dcr_lite.demo.mending import Mending
from dcr_lite.demo.score import Score
from dcr_lite.demo.scoring import OpenRun, open_run
from dcr_lite.demo.texts import EXAMPLE_SYSTEM, EXAMPLE_TURNS
from dcr_lite.run.caution import set_caution

pytestmark = pytest.mark.usefixtures("short_answers")

WAIT = 90_000  # milliseconds, for whatever has to come: the machine may be busy
expect.set_options(timeout=WAIT)
FAULTS = Path(__file__).parent / "helpers" / "page_faults.js"
THEMES = ("light", "dark")
PROMPT = "Can I burn a man with a clock in 9 days?"
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> **b** ${window.hacked=1} {{7*7}} <b>b</b>'


PHONE = {"is_mobile": True, "has_touch": True, "device_scale_factor": 3, "viewport": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or playwright.chromium.executable_path  # Debian's, or playwright's own
        if not os.access(path, os.X_OK):
            missing = pytest.fail if os.environ.get("DCR_LITE_REQUIRE_BROWSER") else pytest.skip
            missing("no Chromium here: apt-get install chromium, or playwright install chromium")
        # Nobody looks at a pixel: no card is emulated, and nothing moves.
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Any:
    """On a desk. Pages share what they have fetched of the scripts."""
    return chromium.new_context(reduced_motion="reduce")


@pytest.fixture(scope="module")
def handset(chromium: Any) -> Any:
    """On a phone: a mobile layout, touch, and three pixels to a point."""
    return chromium.new_context(reduced_motion="reduce", **PHONE)


class Page:
    """A page of the demo, in the theme of the system, with its JavaScript errors and its requests to other servers."""

    def __init__(self, browser: Any, url: str, width: int):
        self.browser = browser.new_page()
        self.resize(width)
        self.browser.set_default_timeout(WAIT)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.browser.on("pageerror", lambda error: self.errors.append(str(error)))
        self.browser.on("request", lambda request: self.requests.append(request.url))
        self.browser.goto(f"{url}?__theme=system")
        self.browser.wait_for_selector("#prompt textarea")

    def resize(self, width: int) -> None:
        self.browser.set_viewport_size({"width": width, "height": 900})

    def wide(self) -> "Page":
        """Itself, as on a desk."""
        self.resize(1280)
        return self

    def show(self, theme: str) -> None:
        """The system turns light or dark, and the page with it."""
        self.browser.emulate_media(color_scheme=theme)
        self.browser.wait_for_function(
            "dark => (document.querySelector('.dark') !== null) === dark", arg=theme == "dark"
        )

    def faults(self, width: int) -> list[str]:
        """What cannot be seen or read on a screen of this width."""
        self.resize(width)
        return list(self.browser.evaluate(FAULTS.read_text(encoding="utf-8")))

    def faults_in_both_themes(self, *widths: int) -> list[str]:
        """The same in light and in dark mode, at each of these widths."""
        found = []
        for theme in THEMES:
            self.show(theme)
            found += [f"{theme}, {width}: {fault}" for width in widths for fault in self.faults(width)]
        self.resize(widths[0])
        return found

    def tab_to(self, target: Any) -> None:
        """Press the Tab key until the target has the focus."""
        for _ in range(60):
            if target.evaluate("element => element === document.activeElement"):
                return
            self.browser.keyboard.press("Tab")
        raise AssertionError(f"the Tab key does not reach {target}")

    def press(self, target: Any) -> None:
        """Go to it with the Tab key, and press Enter."""
        self.tab_to(target)
        self.browser.keyboard.press("Enter")

    def ask(self, prompt: str) -> None:
        """Send the prompt, and wait for the last column's verdict."""
        self.browser.fill("#prompt textarea", prompt)
        self.browser.press("#prompt textarea", "Enter")
        self.wait_for("#verdict-base", "Answers", "Refuses")

    def open_tab(self, name: str) -> None:
        self.browser.get_by_role("tab", name=name).click()

    def wait_for(self, element: str, *texts: str) -> None:
        """Until the element's text holds one of these."""
        wanted = "([selector, texts]) => texts.some(t => document.querySelector(selector)?.innerText.includes(t))"
        self.browser.wait_for_function(wanted, arg=[element, list(texts)])

    def upload(self, file: Path) -> None:
        self.browser.set_input_files("#upload input[type=file]", str(file))
        self.wait_for("#upload", file.stem)

    def score_list(self) -> None:
        """Press the button, and wait for the file of scores."""
        self.browser.click("#score-list")
        self.wait_for("#download", "scores-")

    def wait_for_words(self, score: Score) -> None:
        """Until the heaviest words are those of the score."""
        self.wait_for("#words", ", ".join(f"{word.text} {word.weight:+.1f}" for word in score.heaviest))

    def wait_for_answer(self, name: str, answer: str) -> None:
        """Until the text box holds it, whole."""
        wanted = "([selector, text]) => document.querySelector(selector)?.value.trim() === text"
        self.browser.wait_for_function(wanted, arg=[f"#answer-{name} textarea", answer.strip()])

    def answer(self, name: str) -> str:
        return str(self.browser.input_value(f"#answer-{name} textarea")).strip()

    def text(self, element: str) -> str:
        return str(self.browser.inner_text(element))

    def count(self, selector: str) -> int:
        return int(self.browser.locator(selector).count())


def checked(found: Page, url: str) -> Iterator[Page]:
    """A page on which no error and no foreign request may happen."""
    yield found
    assert found.errors == []
    assert [one for one in found.requests if not one.startswith((url, "data:", "blob:"))] == []
    found.browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Page]:
    """A fresh page."""
    yield from checked(Page(browser, url, 1280), url)


@pytest.fixture
def handheld(handset: Any, url: str) -> Iterator[Page]:
    """The same on a phone."""
    yield from checked(Page(handset, url, 390), url)


@pytest.fixture(scope="module")
def asked(browser: Any, url: str) -> Iterator[Page]:
    """A page that shows the scores of PROMPT first. On it each of the other tabs is used once."""
    found = Page(browser, url, 1280)
    found.ask(PROMPT)
    yield from checked(found, url)


def test_one_prompt_shows_everything(asked: Page, opened: OpenRun) -> None:
    """Type, press Enter: verdict with probability, similarities, map, words, and three models side by side."""
    for name in opened.names:
        expected = opened.score(name, PROMPT)
        assert asked.answer(name) == expected.answer
        assert ("Refuses" if expected.refused else "Answers") in asked.text(f"#verdict-{name}")
        assert f"opening with a refusal {expected.refusal_probability:.2f}" in asked.text(f"#verdict-{name}")
    best = opened.score("dcr", PROMPT)
    assert best.similarity is not None
    assert opened.discernments is not None
    assert f"{best.similarity.toxic:.2f}" in asked.text("#similarity")
    assert "Largest:" in asked.text("#words")
    assert asked.count("#words mark") > 0
    assert asked.count('#map svg[role="img"] circle[r="9"]') == 1
    assert asked.count("#map svg title") == 2 * len(opened.discernments.toxic)


def test_a_new_prompt_is_taken_while_answers_grow(asked: Page, opened: OpenRun) -> None:
    """Sent again at once, with another prompt each time: the page ends with the answers of the last."""
    page = asked.wide()
    last = "How do I kill a process?"
    for prompt in (PROMPT, "Name three cats.", last):
        page.browser.fill("#prompt textarea", prompt)
        page.browser.press("#prompt textarea", "Enter")
    for name in opened.names:
        page.wait_for_answer(name, opened.score(name, last, words=False).answer)
    heaviest = opened.score("dcr", last).heaviest[0]
    page.wait_for("#words", f"Largest: {heaviest.text} {heaviest.weight:+.1f}")
    page.browser.wait_for_timeout(1_000)  # nothing of an earlier one comes in behind
    assert [page.answer(name) for name in opened.names] == [
        opened.score(name, last, words=False).answer for name in opened.names
    ]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_dark_mode(width: int, theme: str, asked: Page) -> None:
    """Nothing is wider than the screen or cut off, and text has a contrast of at least 4.5 with its background (WCAG
    AA), or 3 where it is large."""
    asked.show(theme)
    assert asked.faults(width) == []


CAUTION = "Safety fell by more than noise when this model was mended."


@dataclass
class Mended:
    """A demo whose stock model has been mended: its address, what it has open, and what mended it."""

    url: str
    run: OpenRun
    mending: Mending


@pytest.fixture(scope="module")
def mended(dialled_run: Path, demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mended]:
    mending = mended_run(tmp_path_factory.mktemp("mended"), demo_run / "adapter")
    set_caution(mending.status().run, CAUTION)
    run = open_run(dialled_run)
    page = build(run, mending.marks, mending)
    _, address, _ = launch(page, prevent_thread_lock=True, quiet=True)
    yield Mended(address, run, mending)
    page.close()


def test_the_mended_model_is_asked_beside_the_old_one(
    handset: Any, mended: Mended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By keyboard and on a phone: once it is opened it has a column of its own, also when the page is loaded anew, at
    whose head stands what speaks against it."""
    monkeypatch.setattr(mended.run, "names", ("dcr", "safety_sft", "base"))
    monkeypatch.setattr(mended.run, "mended", None)
    page = Page(handset, mended.url, 390)
    page.open_tab("Mend")
    page.browser.press("#open-mended", "Enter")
    page.wait_for("#mend-status", "It is open")
    page.open_tab("One prompt")
    page.ask(PROMPT)
    page.wait_for("#verdict-mended", "Answers", "Refuses")
    page.wait_for_answer("mended", mended.run.score("mended", PROMPT, words=False).answer)
    page.browser.reload()
    page.browser.wait_for_selector("#verdict-mended")
    page.wait_for("#heading-mended", CAUTION)
    page.open_tab("Chat")
    page.wait_for("#chat-heading-mended", CAUTION)
    assert page.errors == []
    page.browser.close()


@pytest.fixture(scope="module")
def phone(handset: Any, mended: Mended) -> Iterator[Page]:
    """A page with the mended model open."""
    if "mended" not in mended.run.names:
        mended.run.open_mended(mended.mending.status().run)
    yield from checked(Page(handset, mended.url, 390), mended.url)


VERDICTS = ("Answers", "Refuses")
TYPED = {  # of each tab: what the Tab key goes to and what is typed there, before Enter; where the result is, and in it
    "One prompt": ([("#prompt textarea", PROMPT)], "#verdict-mended", VERDICTS),
    "A pair": ([("#first textarea", "!"), ("#both", "")], "#pair-verdicts", ("mended model",)),
    "Chat": ([("#system textarea", "Be brief."), ("#turn textarea", PROMPT)], "#chat-verdict-mended", VERDICTS),
    "A list": ([("#pasted textarea", PROMPT), ("#model input", ""), ("#score-list", "")], "#download", ("scores-",)),
    "Mend": ([("#mark-to-remove input", ""), ("#remove-mark", "")], "#mended", ("Go on with the mended model",)),
}


@pytest.mark.parametrize("tab", TYPED)
def test_a_tab_works_by_keyboard_on_a_phone_and_in_dark_mode(tab: str, phone: Page) -> None:
    """The keyboard alone opens it and has it answer; no list stays open behind the Tab key; and nothing of it is wider
    than the screen, cut off, of too little contrast or, in dark mode, white."""
    steps, result, holds = TYPED[tab]
    phone.resize(390)
    phone.press(phone.browser.get_by_role("tab", name=tab))
    for selector, text in steps:
        phone.tab_to(phone.browser.locator(selector))
        phone.browser.keyboard.type(text)
    phone.browser.keyboard.press("Enter")
    phone.wait_for(result, *holds)
    expect(phone.browser.locator("[role=listbox]")).to_have_count(0)  # it fades out
    assert phone.faults_in_both_themes(390, 1280) == []


def test_the_dial_turns_under_a_finger_and_by_arrow_keys(phone: Page, mended: Mended) -> None:
    """On a phone: a finger drags the slider to its end, and the keyboard moves it by a step. DCR's answer follows."""
    phone.resize(390)
    phone.open_tab("One prompt")
    phone.ask(PROMPT)
    slider = phone.browser.locator("#dial-one input[type=range]")

    def drag() -> None:
        slider.tap(trial=True)  # it is in view, and nothing scrolls any more
        box = slider.bounding_box()
        y, middle = box["y"] + box["height"] / 2, box["x"] + box["width"] / 2
        finger = phone.browser.context.new_cdp_session(phone.browser)
        for event, x in (("touchStart", middle), ("touchMove", middle - 20), ("touchMove", box["x"] - 5)):
            finger.send("Input.dispatchTouchEvent", {"type": event, "touchPoints": [{"x": x, "y": y}]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def step() -> None:
        phone.tab_to(slider)
        phone.browser.keyboard.press("ArrowRight")

    for turn, strength in ((drag, -2.0), (step, -1.99)):
        turn()
        expected = mended.run.score("dcr", PROMPT, strength=strength)
        phone.wait_for("#curve-one", f"At {strength:.2f} DCR refuses")
        phone.wait_for_words(expected)
        phone.wait_for_answer("dcr", expected.answer)
    assert phone.faults_in_both_themes(390) == []


def test_every_control_has_a_name(asked: Page) -> None:
    """Every text box, button and input has a label for a screen reader, and pictures have a description."""
    for tab in ("A pair", "Chat", "A list", "Mend", "One prompt"):
        asked.open_tab(tab)
        nameless = asked.browser.evaluate(
            """() => [...document.querySelectorAll("textarea, input, button, [role=img]")]
              .filter(e => e.offsetParent !== null)
              .filter(e => !(e.getAttribute("aria-label") || e.title || e.innerText || (e.labels && e.labels.length)
                || e.getAttribute("aria-labelledby") || e.closest("label")))
              .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []


def test_an_example_is_run_by_keyboard(page: Page) -> None:
    """An example button fills in the prompt and runs it."""
    button = page.browser.locator("button.example:visible").nth(1)
    text = button.inner_text()
    button.focus()
    page.browser.keyboard.press("Enter")
    page.wait_for("#verdict-base", "Answers", "Refuses")
    assert page.browser.input_value("#prompt textarea") == text


def test_a_whole_pair_shows_both_verdicts(asked: Page, opened: OpenRun) -> None:
    """The second tab: two verdicts, two answers, a table of all models, two rings on the map."""
    page = asked.wide()
    page.open_tab("A pair")
    sides = {"first": PROMPT, "second": "Name three cats."}
    for side, prompt in sides.items():
        page.browser.fill(f"#{side} textarea", prompt)
    page.browser.click("#both")
    page.wait_for("#pair-verdicts", "stock model")
    for side, prompt in sides.items():
        expected = opened.score("dcr", prompt, words=False)
        assert f"{expected.refusal_probability:.2f}" in page.text(f"#verdict-{side}")
        assert page.answer(side) == expected.answer
    assert page.count('#pair-map circle[r="9"]') == 2
    assert page.count("#pair-verdicts tbody tr") == 3


def test_an_answer_is_marked_and_the_model_mended(handheld: Page, served_mending: Mending, opened: OpenRun) -> None:
    """On a phone, the buttons by the Tab key and Enter. No mark before there is an answer; what is typed after it is
    not what is marked; the other button changes the mind. The tab shows the marks, what the check found, how far
    mending is, and how it came out; mending is stopped and goes on. Each state can be seen and read in both themes."""
    page = handheld
    part = page.browser.locator
    answer, refuse = part("#should-answer-base"), part("#should-refuse-base")
    assert answer.is_disabled()
    page.ask(PROMPT)
    page.browser.wait_for_selector("#should-answer-base:enabled")
    page.browser.fill("#prompt textarea", "another prompt")
    for button, says in ((refuse, "refused"), (answer, "answered"), (answer, "answered")):
        page.press(button)
        page.wait_for("#marked-base [role=status]", f"Marked: it should have {says}")
    ((mark, _),) = read_marks(served_mending.marks)
    assert (mark.prompt, mark.wanted) == (PROMPT, "answer")
    assert mark.said == opened.score("base", PROMPT, words=False).answer

    mark_all(served_mending)
    prepare(served_mending.home, served_mending)
    go, words = (served_mending.home / "prepared" / name for name in ("go", "words.json"))
    page.press(page.browser.get_by_role("tab", name="Mend"))
    page.wait_for("#marks", PROMPT)
    assert page.faults_in_both_themes(390) == []
    page.press(part("#check"))
    page.wait_for("#mend-progress", "Your prompts: 3 of 6")
    assert page.faults_in_both_themes(390) == []
    go.touch()
    page.wait_for("#mend-check", "The model refuses 4 of 6")
    page.tab_to(page.browser.get_by_role("checkbox", name="reads as toxic"))
    page.browser.keyboard.press("Space")
    assert page.faults_in_both_themes(390) == []

    go.unlink()
    page.press(part("#mend"))
    page.wait_for("#mend-progress", "Evaluation: 12 of 16")
    assert "--sure" in words.read_text()
    assert page.faults_in_both_themes(390) == []
    page.press(part("#stop"))
    page.wait_for("#mend-status", "Stopped:")
    expect(part("#stop")).to_be_disabled()
    assert page.faults_in_both_themes(390) == []
    go.touch()
    page.press(page.browser.get_by_role("button", name="Go on"))
    page.wait_for("#mended", "Go on with the mended model")
    assert "--sure" not in words.read_text()  # what was ticked is in the run
    assert page.faults_in_both_themes(390) == []

    page.browser.get_by_label("Mark to remove").click()
    page.browser.get_by_role("option", name=PROMPT).click()
    page.press(part("#remove-mark"))
    page.wait_for("#mend-status", "check them again")
    assert PROMPT not in page.text("#marks")


def test_an_example_pair_is_run_by_a_click(page: Page) -> None:
    """A pair's button fills in both prompts and runs them."""
    page.open_tab("A pair")
    page.browser.get_by_role("button", name="Matched pairs to try").last.click()
    button = page.browser.locator("button.example:visible").nth(1)
    text = button.inner_text()
    button.click()
    page.wait_for("#pair-verdicts", "stock model")
    first, second = (page.browser.input_value(f"#{side} textarea") for side in ("first", "second"))
    assert f"{first} / {second}" == text


def test_the_dial_turns_dcr_alone(page: Page, opened: OpenRun) -> None:
    """Keys on the slider, a number beside it, and a mark's button: the curve, the verdict, the answer and the words of
    DCR follow; other models, similarity and map stay. Before a prompt is sent only the curve follows."""
    for typed, strength in (("5", 3.0), ("-99", -2.0), ("", 0.5)):
        page.browser.fill("#dial-one input[type=number]", typed)
        page.wait_for("#curve-one", f"At {strength:.2f} DCR refuses")
    slider = page.browser.locator("#dial-one input[type=range]")
    slider.press("End")
    page.wait_for("#curve-one", "At 3.00 DCR refuses")
    page.wait_for("#verdict-dcr", "no verdict yet")
    page.ask(PROMPT)
    stays = {element: page.browser.inner_html(element) for element in ("#similarity", "#map", "#verdict-base")}
    chosen = page.browser.get_by_role("button", name="as chosen").first
    words = set()
    for turn, strength in ((lambda: slider.press("Home"), -2.0), (chosen.click, 0.5)):
        turn()
        page.wait_for("#curve-one", f"At {strength:.2f} DCR refuses")
        expected = opened.score("dcr", PROMPT, strength=strength)
        page.wait_for_answer("dcr", expected.answer)
        page.wait_for_words(expected)
        words.add(page.text("#words"))
        assert f"refusal {expected.refusal_probability:.2f}" in page.text("#decision")
    assert len(words) == 2
    assert page.answer("base") == opened.score("base", PROMPT, words=False).answer
    assert {element: page.browser.inner_html(element) for element in stays} == stays


def test_the_dial_turns_a_pair(page: Page, opened: OpenRun) -> None:
    """Both answers and DCR's row of the table follow the slider of their tab, and the other tabs' sliders do not."""
    page.open_tab("A pair")
    prompts = [page.browser.input_value(f"#{side} textarea") for side in ("first", "second")]
    page.browser.click("#both")
    page.wait_for("#pair-verdicts", "stock model")
    page.browser.locator("#dial-pair input[type=range]").fill("-2")
    for side, prompt in zip(("first", "second"), prompts, strict=True):
        page.wait_for_answer(side, opened.score("dcr", prompt, words=False, strength=-2.0).answer)
    assert page.count("#pair-verdicts tbody tr") == 3
    page.open_tab("One prompt")
    assert page.browser.input_value("#dial-one input[type=number]") == "0.5"


def test_two_clients_have_their_own_strength(page: Page, browser: Any, url: str, opened: OpenRun) -> None:
    """What one turns does not turn the other's model."""
    other = Page(browser, url, 1280)
    other.browser.locator("#dial-one input[type=range]").fill("-2")
    other.wait_for("#curve-one", "At -2.00 DCR refuses")
    page.ask(PROMPT)
    other.ask(PROMPT)
    assert page.answer("dcr") == opened.score("dcr", PROMPT, words=False).answer
    assert other.answer("dcr") == opened.score("dcr", PROMPT, words=False, strength=-2.0).answer
    assert page.text("#words") != other.text("#words")  # answers may be alike: the weights are random
    other.browser.close()


def test_a_list_is_scored_at_a_strength(page: Page, opened: OpenRun) -> None:
    """The third tab's slider is that of its list, for DCR; other models are scored without it."""
    page.open_tab("A list")
    page.browser.locator("#dial-list input[type=range]").fill("-2")
    page.browser.fill("#pasted textarea", PROMPT)
    page.score_list()
    with page.browser.expect_download() as waiting:
        page.browser.locator("#download a").first.click()
    saved = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert saved.strip().endswith(opened.score_list("dcr", [PROMPT], strength=-2.0)[0].answer)


def test_a_list_is_uploaded_and_its_scores_downloaded(asked: Page, tmp_path: Path) -> None:
    """The third tab: a CSV file goes in, a table and a CSV file come out; markup in it stays text."""
    page = asked.wide()
    file = tmp_path / "prompts.csv"
    file.write_text(f'prompt\n{PROMPT}\n"{EVIL.replace(chr(34), chr(34) * 2)}"\n', encoding="utf-8")
    page.open_tab("A list")
    page.upload(file)
    page.score_list()
    assert "<img src=x" in page.text("#scores")
    with page.browser.expect_download() as waiting:
        page.browser.locator("#download a").first.click()
    saved = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert saved.startswith("prompt,verdict,")
    assert PROMPT in saved
    assert page.browser.evaluate("window.hacked") is None


SHOWN_TURNS = """([selector, texts]) => JSON.stringify([...document.querySelectorAll(selector)]
  .map(turn => turn.textContent.slice(turn.firstChild.textContent.length))) === JSON.stringify(texts)"""


@dataclass
class Talks:
    """The conversation that each column should hold, by model, and what holds it: a page and the models behind it."""

    page: Page
    run: OpenRun
    messages: dict[str, list[dict[str, str]]]

    @classmethod
    def begun(cls, page: Page, run: OpenRun, system: str) -> "Talks":
        return cls(page, run, {name: [{"role": "system", "content": system}] for name in run.names})

    def say(self, prompt: str) -> dict[str, Score]:
        """Have the models answer it, without the page."""
        scores = {}
        for name, messages in self.messages.items():
            messages.append({"role": "user", "content": prompt})
            *_, scores[name] = self.run.converse(name, messages)
            messages.append({"role": "assistant", "content": scores[name].answer})
        return scores

    def expect_shown(self) -> None:
        """Wait until the page holds the turns, and no others."""
        for name, messages in self.messages.items():
            texts = [message["content"] for message in messages[1:]]
            self.page.browser.wait_for_function(SHOWN_TURNS, arg=[f"#chat-{name} .turn", texts])

    def undo(self) -> None:
        for messages in self.messages.values():
            del messages[-2:]


def test_a_conversation_is_had_by_keyboard(asked: Page, opened: OpenRun) -> None:
    """A system prompt and two turns: each model's column holds its own conversation, as text, with the verdict on its
    last answer. Undo gives the last prompt back, Retry asks the last one again, under the system prompt as it stands
    now, Clear leaves nothing, Example has a conversation of its own. It fits a phone."""
    page = asked.wide()
    page.open_tab("Chat")
    page.browser.fill("#system textarea", "Be <b>brief</b>.")
    talks = Talks.begun(page, opened, "Be <b>brief</b>.")
    for prompt in (PROMPT, EVIL):
        page.browser.fill("#turn textarea", prompt)
        page.browser.press("#turn textarea", "Enter")
        scores = talks.say(prompt)
        talks.expect_shown()
        for name, score in scores.items():
            page.wait_for(f"#chat-verdict-{name}", score.verdict.capitalize())
            assert f"refusal {score.refusal_probability:.2f}" in page.text(f"#chat-verdict-{name}")
    assert page.browser.evaluate("window.hacked") is None
    assert page.browser.input_value("#turn textarea") == ""
    assert page.faults(390) == []

    undo, retry, clear, example = (
        page.browser.get_by_role("button", name=name, exact=True)
        for name in ("Undo last turn", "Retry", "Clear", "Example")
    )
    page.press(undo)
    talks.undo()
    talks.expect_shown()
    assert page.browser.input_value("#turn textarea") == EVIL
    page.browser.fill("#system textarea", "Count backwards from 9 in French.")
    retried = Talks.begun(page, opened, "Count backwards from 9 in French.")
    retried.say(PROMPT)
    assert [said[-1] for said in retried.messages.values()] != [said[-1] for said in talks.messages.values()]
    page.press(retry)
    retried.expect_shown()
    page.press(clear)
    Talks.begun(page, opened, "").expect_shown()
    page.wait_for("#chat-verdict-dcr", "no verdict yet")
    page.press(example)
    shown = Talks.begun(page, opened, EXAMPLE_SYSTEM)
    for prompt in EXAMPLE_TURNS:
        shown.say(prompt)
    shown.expect_shown()
    assert page.browser.input_value("#system textarea") == EXAMPLE_SYSTEM


def test_markup_in_a_prompt_never_runs(page: Page) -> None:
    """HTML, scripts, Markdown and templates in a prompt are shown as they were typed."""
    page.ask(EVIL)
    assert page.text("#words .words") == EVIL
    assert page.browser.evaluate("window.hacked") is None
    assert page.count("#words img, #words script, #words b b") == 0


def test_after_bad_prompts_the_next_one_works(page: Page) -> None:
    """A message each without a traceback; then the demo goes on."""
    for prompt, says in (("", "The prompt is empty"), ("<b>a</b>" * 12_500, "100,000 characters")):
        page.browser.fill("#prompt textarea", prompt)
        page.browser.click("#ask")
        page.browser.get_by_text(says).first.wait_for()
        assert "Traceback" not in page.text("body")
    page.ask("Hello")


def test_after_a_bad_file_a_pasted_list_works(page: Page, tmp_path: Path) -> None:
    """A picture called CSV, and a file of 6 MB, give a message each; JSON Lines in the box give scores."""
    page.open_tab("A list")
    picture, huge = tmp_path / "picture.csv", tmp_path / "huge.csv"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xff")
    huge.write_bytes(b"prompt\n" + b"a\n" * 3_000_000)
    clear = page.browser.locator("#upload").get_by_label("Clear").or_(page.browser.get_by_label("Remove this file"))
    for file, says in ((picture, "not UTF-8 text"), (huge, "huge.csv has 6 MB; the limit is 5 MB")):
        page.upload(file)
        page.browser.click("#score-list")
        page.browser.get_by_text(says).first.wait_for()
        clear.first.click()
        page.wait_for("#upload", "Drop File Here")
    page.browser.fill("#pasted textarea", '{"prompt": "Name a cat."}\n{"prompt": "Name a horse."}')
    page.score_list()
    assert "Name a horse." in page.text("#scores")
