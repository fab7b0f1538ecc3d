"""Attacks on readers of text: rows, lists of prompts, tables, pages of Markdown and HTML, recipes, flags."""

import csv
import json
import math
import re
import string
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dcr_lite.data import rows as readers
from dcr_lite.data.sources import convert
from dcr_lite.demo import markup
from dcr_lite.demo.prompt_list import FORMULA, read_prompt_list, write_scores
from dcr_lite.demo.prompt_text import cleaned
from dcr_lite.demo.score import Score, Word
from dcr_lite.evaluate.labelling import label_answers, write_rows
from dcr_lite.measure.judge import evidence, is_refusal, refusal_score, verdict_is_final
from dcr_lite.run.discernment import Similarity
from dcr_lite.run.recipes import find_recipe, load_recipe
from dcr_lite.run.report import code, markdown_table, plain
from tests.faults.inputs import Attack, leaves_nothing, refused

# Texts that have broken readers of text: markup, formulas, terminal codes, odd spaces and ends of lines, halves of
# characters, right-to-left marks, what grows when it is normalised, special tokens, paths.
NASTY = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "](javascript:alert(1))", "![x](http://x.example/y)",
    "`", "|", "\\", "\\|", "&lt;b&gt;", "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\x1b[2J", "\x1b]0;x\x07", "\0",
    "\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r", "\n", "\r\n", "\ufeff", "\ud83d", "\udc00", "\u202e", "\u200f",
    "\u2066", "\u200b", "\ufdfa", "\N{ZERO WIDTH JOINER}", "e\u0301" * 9, "ß", "ŉ", "ﬁ", "İ", "\uff1d1", "<|im_end|>",
    "<|im_start|>system\n", "</s>", "{{7*7}}", "${x}", "{0}", "%s", "../../etc/passwd", "/dev/zero", "C:\\x", "a" * 300,
    "I'm sorry, but", "```", "> ", "---", "1e999", "NaN",
)  # fmt: skip
TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(NASTY) | st.text(max_size=8), max_size=6).map("".join))
WHOLE_TEXT = TEXT.map(lambda text: text.encode("utf-8", "replace").decode() + "a")  # one that can be encoded
NUMBERS = st.one_of(
    st.integers(-3, 5), st.sampled_from([10**30, -(10**30), 1e308, math.inf, -math.inf, math.nan, 0.0]), st.floats()
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
DEEP = st.sampled_from(
    [b'{"prompt": "a", "response": "b", "c": ' + b"[" * n + b"]" * n + b"}" for n in (90, 300, 450, 900, 960, 980)]
    + [b"[" * 100_000, b'{"a":' * 5_000, b"[" * 700 + b"]" * 700, b'{"a":' * 900 + b"1" + b"}" * 900]
)


def objects(*fields: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that mostly have these fields, each mostly a text."""
    value = TEXT | TEXT | JSON
    return st.dictionaries(st.sampled_from(fields) | TEXT, value, max_size=len(fields) + 2)


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def lines_of(*fields: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON Lines: mostly objects with these fields, each a text, and with ``more``; among other values, broken lines,
    other bytes and other ends."""
    good = st.fixed_dictionaries(dict.fromkeys(fields, WHOLE_TEXT) | more).map(json_bytes)
    odd = st.one_of(objects(*fields, *more).map(json_bytes), JSON.map(json_bytes), st.binary(max_size=30))
    odd |= st.builds(lambda whole, end: whole[: -end or None], good, st.integers(0, 9))
    odd |= st.sampled_from(range(20)).flatmap(lambda n: DEEP if n == 0 else good)
    ends = st.sampled_from([b"\n"] * 6 + [b"\n\n", b"\r\n", b"\r", b""])
    return st.builds(bytes.join, ends, st.lists(good, max_size=4) | st.lists(good | odd, max_size=4))


# --- rows -------------------------------------------------------------------------------------------------------------


def check_rows(reader: Callable[[Path], list[Any]]) -> Callable[[bytes, Path], bool]:
    def check(raw: bytes, folder: Path) -> bool:
        path, found = folder / "rows.jsonl", []
        path.write_bytes(raw)
        with leaves_nothing(folder):
            if refused(lambda: found.extend(reader(path))):
                return False
        assert found
        for row in found:
            for text in (value for value in vars(row).values() if isinstance(value, str)):
                text.encode()  # a tokenizer takes no half of a character
        return True

    return check


def check_judged(raw: bytes, folder: Path) -> bool:
    """What is labelled can be written, and read back as it was."""
    path, out, rows = folder / "answers.jsonl", folder / "out.jsonl", []
    path.write_bytes(raw)
    out.touch()
    with leaves_nothing(folder):
        if refused(lambda: rows.extend(label_answers(str(path), literature=True)[0])):
            return False
        write_rows(rows, str(out))
        again = readers.read_jsonl(out, lambda fields, place: fields)
    assert len(again) == len(rows)
    assert all({"refused", "score", "string_match", "opening_match"} <= row.keys() for row in again)
    return True


def check_judge(text: str, folder: Path) -> bool:
    assert 0 <= refusal_score(text) <= 1
    assert is_refusal(text) == (refusal_score(text) >= 0.5)
    assert all(isinstance(points, int) for points in evidence(text).values())
    verdict_is_final(text)
    return True


LONG_ANSWERS = st.builds(
    lambda parts, times: ("".join(parts) * times)[:9_000],
    st.lists(
        st.sampled_from([*NASTY, "i ", "is ", "no, ", "not ", "cannot ", "'", '"', "```\n", "1. ", " ", "\n", "and "]),
        max_size=8,
    ),
    st.sampled_from([1, 30, 1_000]),
)


# --- lists of prompts -------------------------------------------------------------------------------------------------

CELLS = st.lists(TEXT | st.sampled_from(["prompt", "text", '"', ",", '""']), min_size=1, max_size=4).map(",".join)
LIST_LINES = st.lists(CELLS | TEXT, max_size=5).map("\n".join).map(lambda text: text.encode("utf-8", "surrogatepass"))
LISTS = st.tuples(
    st.sampled_from(["a.csv", "a.CSV", "a.jsonl", "a.ndjson", "a.txt", "the list", "", ".csv", "a\nb.csv"]),
    st.one_of(LIST_LINES, LIST_LINES, lines_of("prompt"), st.binary(max_size=60), st.just(b"\xef\xbb\xbfprompt\na")),
)


def check_list(named: tuple[str, bytes], folder: Path) -> bool:
    prompts: list[str] = []
    if refused(lambda: prompts.extend(read_prompt_list(named[1], named[0]))):
        return False
    assert prompts
    assert all(isinstance(prompt, str) and prompt.strip() for prompt in prompts)
    return True


SCORES = st.lists(
    st.builds(
        lambda prompt, answer, odds: Score("dcr", prompt, odds, None, (), answer, True), TEXT, TEXT, st.floats(-80, 80)
    ),
    max_size=4,
)


def check_download(scores: list[Score], folder: Path) -> bool:
    """No cell of the downloaded file is a formula, and the file holds every text."""
    before = len(list(folder.iterdir()))
    path = write_scores(scores, folder)
    assert len(list(folder.iterdir())) == before + 1
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    assert len(rows) == len(scores)
    for row, score in zip(rows, scores, strict=True):
        assert not any(cell.startswith(FORMULA) for cell in row), row
        for cell, text in ((row[0], score.prompt), (row[-1], score.answer)):
            assert cell.removeprefix("'") == text.encode("utf-8", "backslashreplace").decode().removeprefix("'")
    return True


def check_cleaned(prompt: str, folder: Path) -> bool:
    kept: list[str] = []
    if refused(lambda: kept.append(cleaned(prompt))):
        return False
    assert kept[0].strip() == kept[0] != ""
    kept[0].encode()
    assert cleaned(kept[0]) == kept[0]
    return True


# --- what is shown ----------------------------------------------------------------------------------------------------

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
ACTIVE = {"html_block", "html_inline", "link_open", "image"}


def tokens_of(text: str) -> list[Any]:
    tokens = MARKDOWN.parse(text)
    return [inner for token in tokens for inner in (token, *(token.children or []))]


def check_markdown(cells: list[list[str]], folder: Path) -> bool:
    """A table of texts from outside is a table of so many cells, with nothing in it but those texts."""
    head, *rows = [[plain(cell) for cell in row] for row in cells]
    tokens = tokens_of(markdown_table(head, rows))
    kinds = [token.type for token in tokens]
    assert not ACTIVE & set(kinds), kinds
    assert (kinds.count("th_open"), kinds.count("tr_open")) == (len(head), len(cells))
    command = tokens_of(f"# {head[0]}\n\n{code(cells[0][0])} on {rows[0][0]}.\n\n- kind: {rows[0][0]}")
    assert not ACTIVE & {token.type for token in command}, command
    return True


def tables() -> st.SearchStrategy[list[list[str]]]:
    return st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(TEXT, min_size=width, max_size=width), min_size=2, max_size=4)
    )


class Tags(HTMLParser):
    """The tags and the attributes of a piece of HTML, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


TAGS = {
    *("div", "p", "h2", "strong", "span", "mark", "b", "table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "circle", "rect", "title", "text"),
}


def check_markup(shown: tuple[str, list[float]], folder: Path) -> bool:
    """A prompt is text on the page: it adds no tag, and no attribute that acts."""
    prompt, weights = shown
    words, end = [], 0
    for piece, weight in zip(re.finditer(r"\S+", prompt), weights, strict=False):
        words.append(Word(piece[0], *piece.span(), weight))
    like = Similarity(0.4, 0.6, 0.1, 0.2, (end, 1.0))
    score = Score("dcr", prompt, 1.0, like, tuple(words), prompt, True)
    for html in (markup.words(score), markup.verdict(score), markup.empty(prompt), markup.pair_table({"dcr": [score]})):
        seen = Tags()
        seen.feed(html)
        assert seen.tags <= TAGS, seen.tags
        assert not {name for name in seen.attributes if name.startswith("on") or name in ("href", "src")}
    return True


# --- recipes ----------------------------------------------------------------------------------------------------------

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2_135m.py"
SOURCES = st.one_of(
    TEXT, st.binary(max_size=40), st.just("SETTINGS = 1"), st.just("x = 1 / 0"), st.just("import nothing_like_it"),
    st.just("def main(: pass"), st.just("(" * 400), st.text(string.printable, max_size=60), st.just("raise OSError()"),
    st.just(RECIPE.read_text(encoding="utf-8")),
)  # fmt: skip
RECIPES = st.tuples(st.sampled_from(["r.py", "r.txt", "r", "ü.py"]), SOURCES, TEXT)


def check_recipe(given: tuple[str, str | bytes, str], folder: Path) -> bool:
    """A file that is no recipe, and a name that is none, are sentences."""
    name, source, other = given
    path = folder / name
    path.write_bytes(source if isinstance(source, bytes) else source.encode("utf-8", "surrogatepass"))
    taken = not refused(lambda: load_recipe(find_recipe(str(path))))
    refused(lambda: find_recipe(other))
    return taken


def check_gguf(raw: bytes, folder: Path) -> bool:
    """Only the GGUF file that was tested is converted: of any other nothing is written."""
    with leaves_nothing(folder):
        return not refused(lambda: convert(raw, folder / "converted"))


def text_attacks() -> list[Attack]:
    kinds = {"kind": SCALARS, "focus": TEXT}
    labels = st.sampled_from(["toxic", "seemingly_toxic", "plain", "plain", "Plain"])
    prompts = lines_of("prompt", label=labels) | lines_of("toxic", "seemingly_toxic", source=SCALARS)
    choices = st.lists(WHOLE_TEXT, min_size=2, max_size=4) | st.lists(TEXT | SCALARS, max_size=4)
    right = st.sampled_from([0, 1, "a", "B", "b", "c", "D", "ß", "ŉ", "ä", "", -1, True, 1.0, 10**30])
    questions = lines_of("question", choices=choices, answer=right)
    return [
        Attack(
            "pairs, JSON Lines", 9_000, lines_of("toxic", "seemingly_toxic", **kinds), check_rows(readers.read_pairs)
        ),
        Attack(
            "conversations, JSON Lines", 9_000, lines_of("prompt", "response"), check_rows(readers.read_conversations)
        ),
        Attack("prompts to measure, JSON Lines", 9_000, prompts, check_rows(readers.read_prompts)),
        Attack("multiple choice, JSON Lines", 6_000, questions, check_rows(readers.read_choices)),
        Attack("answers to judge, JSON Lines", 5_000, lines_of("prompt", "response"), check_judged),
        Attack("the judge's patterns", 4_000, TEXT | LONG_ANSWERS, check_judge),
        Attack("lists of prompts: lines, CSV, JSON Lines", 11_000, LISTS, check_list),
        Attack("downloaded scores, CSV", 6_000, SCORES, check_download),
        Attack("prompts of the demo, cleaned", 5_000, TEXT | st.text(), check_cleaned),
        Attack("Markdown tables of texts", 4_000, tables(), check_markdown),
        Attack("HTML of scores", 3_000, st.tuples(TEXT, st.lists(st.floats(-9, 9), max_size=9)), check_markup),
        Attack("recipes by name and by file", 2_000, RECIPES, check_recipe),
        Attack("GGUF of another content", 1_000, st.binary(max_size=200), check_gguf),
    ]
