"""Answers that are broken: empty, repeating themselves, in another script than the prompt's, or made of no words.

Four numbers between 0 and 1 and a limit for each, no judge of what is said. Fluent nonsense is not seen here, nor
another language in the same script: what such an answer is worth shows against the model's own (measure/kept.py).
"""

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise

PHRASE, REPEATS = 8, 3  # words in a phrase, and how often an answer may not say it: lists repeat fewer words

# Limits. The nearest of the 988 shipped answers and of 2,250 answers of five models to XSTest has 0.45 distinct pairs,
# repeats 0.29 of its words, and has no foreign letter and no piece that is no word.
ENOUGH_WORDS = 20  # below it neither shares of words nor distinct pairs mean much: "no, no, no" is an answer
DISTINCT = 0.4  # of the pairs of words; a chorus that is sung three times leaves 0.5, a loop falls towards 0
REPEATED = 0.5  # of the words; three choruses with verses between stay below
FOREIGN = 0.5  # of the letters: a term or a name from another script is no other language
FOREIGN_LETTERS = 20  # below it the letters may be those of a formula
NO_WORDS = 0.5  # of what stands between spaces

# Marks that belong to the letter before them, such as Hindi's vowels and accents of their own, and what joins letters;
# Python counts neither as letters. Beyond these numbers lie marks of scripts that hardly anybody writes.
_MARKS = "\u200c\u200d" + "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
_LETTER = r"[^\W\d_\u3040-\u30ff\u3400-\u9fff]"
_LETTERS = rf"{_LETTER}(?:{_LETTER}|[{_MARKS}])*"
_WORD = re.compile(rf"[\u3040-\u30ff\u3400-\u9fff]|{_LETTERS}(?:['\u2019]{_LETTERS})*")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_RULE = re.compile(r"[-=_*#.~|:+]+")  # lines of Markdown and tables, dots that lead to a page number
_RUN = re.compile(r"([^\d\s])\1{7}")  # one sign eight times: no word has it, and few moans
_LONGEST = 40  # letters; the longest words of German law and of chemistry's index stay below
_NO_VOWEL = re.compile(r"[b-df-hj-np-tv-xz]{6,}")  # y is a vowel here; "rhythms" has one, "nthslxz" none
# Whoever asks for another language or for repetition gets what was asked for.
_ASKS_FOR_SCRIPT = re.compile(
    r"translat|language|alphabet|script\b|character|letter|symbol|kanji|hiragana|katakana|hangul|cyrillic|unicode|emoji"
    r"|\b(?:arabic|armenian|bengali|bulgarian|cantonese|chinese|farsi|georgian|greek|hebrew|hindi|japanese|korean"
    r"|mandarin|marathi|nepali|persian|punjabi|russian|sanskrit|serbian|tamil|telugu|thai|ukrainian|urdu|english|latin)"
)
_ASKS_FOR_REPETITION = re.compile(r"\brepeat|\bover and over|\btimes\b|\bmantra|\blines of\b|\bagain and again")


@dataclass(frozen=True)
class Brokenness:
    """How broken an answer is, in shares of 0 to 1.

    empty: there is nothing in it but space.
    words: how many there are outside code. Each character of Chinese and Japanese counts as one.
    distinct: distinct pairs of neighbouring words, by all pairs: distinct-2 (Li et al., 2016, arXiv 1510.03055); 1
        where there is no pair.
    repeated: words that lie in a phrase of 8 words said before, of phrases that are said three times or more.
    foreign: letters in a script of which the prompt has none; 0 where the prompt has no letters.
    foreign_letters: their number.
    no_words: of what stands between spaces, what cannot be a word: one sign many times, six letters without a vowel, 40
        letters in a row, a character that could not be decoded.
    """

    empty: bool
    words: int
    distinct: float
    repeated: float
    foreign: float
    foreign_letters: int
    no_words: float


def brokenness(prompt: str, response: str) -> Brokenness:
    """The numbers of an answer. Code between backticks counts as words for ``repeated`` alone."""
    text = _CODE.sub(" ", response)
    words = [word.casefold() for word in _WORD.findall(text)]
    pairs = list(pairwise(words))
    foreign, letters = _foreign_letters(prompt, text)
    return Brokenness(
        empty=not response.strip(),
        words=len(words),
        distinct=len(set(pairs)) / len(pairs) if pairs else 1.0,
        repeated=repeated_share(response),
        foreign=foreign / letters if letters else 0.0,
        foreign_letters=foreign,
        no_words=_share_of_no_words(text.split()),
    )


def is_broken(prompt: str, response: str) -> bool:
    """Whether an answer is broken: one of its numbers is beyond its limit, and the prompt did not ask for that."""
    found, asked = brokenness(prompt, response), prompt.casefold()
    repeats = (found.words >= ENOUGH_WORDS and found.distinct < DISTINCT) or (
        len(response.split()) >= ENOUGH_WORDS and found.repeated > REPEATED
    )
    foreign = found.foreign > FOREIGN and found.foreign_letters >= FOREIGN_LETTERS
    return (
        found.empty
        or found.no_words > NO_WORDS
        or (repeats and not _ASKS_FOR_REPETITION.search(asked))
        or (foreign and not _ASKS_FOR_SCRIPT.search(asked))
    )


def before_repeating(text: str) -> str:
    """An answer up to where a phrase comes again that it says three times or more, as small models do that find no end;
    the whole answer where none does."""
    words = list(re.finditer(r"\S+", text))
    again = _said_again([word[0].lower() for word in words])
    if not again:
        return text
    _, second, *_ = min(again, key=lambda places: places[REPEATS - 1])
    return text[: words[second].start()].rstrip()


def repeats_itself(text: str) -> bool:
    """Whether an answer says a phrase three times."""
    return before_repeating(text) != text


def repeated_share(text: str) -> float:
    """The share of words that say again what was said: those of the second and every later saying of a phrase that is
    said three times or more; 0 for a text without words."""
    words = text.lower().split()
    later = {i + k for places in _said_again(words) for i in places[1:] for k in range(PHRASE)}
    return len(later) / len(words) if words else 0.0


def _said_again(words: list[str]) -> list[list[int]]:
    """Of each phrase that is said REPEATS times or more, the numbers of the words with which it begins. It may begin
    within itself, as a word does that is said ten times; a line below the head of a table is no phrase."""
    places: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(words) - PHRASE + 1):
        places.setdefault(tuple(words[i : i + PHRASE]), []).append(i)
    return [
        found for phrase, found in places.items() if len(found) >= REPEATS and not all(map(_RULE.fullmatch, phrase))
    ]


def _share_of_no_words(pieces: list[str]) -> float:
    """Of pieces between spaces, those that cannot be words; also a sign that stands alone behind the same sign."""
    pieces = [piece for piece in pieces if not _RULE.fullmatch(piece) or len(piece) == 1]
    repeated = (a == b and not a.isalnum() and len(a) == 1 for a, b in pairwise(pieces))
    wrong = sum(map(_is_no_word, pieces)) + sum(repeated)
    return min(1.0, wrong / len(pieces)) if pieces else 0.0


def _is_no_word(piece: str) -> bool:
    if "\ufffd" in piece or _RUN.search(piece):
        return True
    letters = piece.strip("\"'()[]{}<>.,:;!?*_")
    return letters.isalpha() and letters.isascii() and (
        len(letters) > _LONGEST or (not letters.isupper() and _NO_VOWEL.fullmatch(letters.casefold()) is not None)
    )  # fmt: skip


def _foreign_letters(prompt: str, text: str) -> tuple[int, int]:
    """The letters of a text in scripts of which the prompt has none, and all its letters."""
    prompt, text = (unicodedata.normalize("NFKC", one) for one in (prompt, text))  # wide and mathematical letters
    own = {_script(letter) for letter in set(filter(str.isalpha, prompt))}
    letters = [letter for letter in text if letter.isalpha()]
    scripts = {letter: _script(letter) for letter in set(letters)}
    return (sum(scripts[letter] not in own for letter in letters) if own else 0), len(letters)


def _script(letter: str) -> str:
    """The script of a letter, by the first word of its name; those that Japanese mixes count as one."""
    name = unicodedata.name(letter, "UNNAMED").split()[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name
