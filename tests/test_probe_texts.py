"""Claims about what probes make of prompts: templates hold the prompt, the past tense follows its table, encodings can
be undone, misspellings keep what they say."""

import base64
import codecs
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr_lite.errors import UserError
from dcr_lite.measure.judge import is_refusal
from dcr_lite.measure.openings import FORCED_OPENING
from dcr_lite.probe import encodings
from dcr_lite.probe.past_tense import past_tense
from dcr_lite.probe.probes import FAMILIES, NONE, PREFIXES, PROBES, STEPS, chosen_probes
from dcr_lite.probe.wordings import CONTEXTS, FRAMINGS, TEMPLATES

TEXTS = st.text(min_size=1, max_size=60)
SENTENCES = st.lists(st.from_regex(r"[A-Za-z]{1,9}[,;]?", fullmatch=True), min_size=1, max_size=9).map(" ".join)


@given(prompt=TEXTS, seed=st.integers(0, 3))
def test_every_template_holds_the_prompt_once_as_it_is(prompt: str, seed: int) -> None:
    """Braces in a prompt change nothing, and what stands around it is the same for every prompt."""
    for name in (*TEMPLATES, *FRAMINGS):
        before, _, after = (TEMPLATES | FRAMINGS)[name].partition("{prompt}")
        assert PROBES[name].rewrite(prompt, seed) == before + prompt + after
        assert before + after


def test_the_hello_control_differs_from_prefix_injection_in_the_words_to_begin_with_alone() -> None:
    """Else it would be no control."""
    injected, hello = (TEMPLATES[name].split('"') for name in ("prefix_injection", "hello"))
    assert len(injected) == len(hello) == 3
    assert injected[0].replace("these words", "this word") == hello[0]


def test_the_probes_of_the_note_are_there() -> None:
    """By name and by family; each once; without names all, and the model as it is always first."""
    assert FAMILIES == (
        "prefilling", "templates", "framings", "contexts", "encodings", "rounding", "fine_tuning", "abliteration",
        "sampling",
    )  # fmt: skip
    assert (PREFIXES, STEPS, len(TEMPLATES), len(FRAMINGS)) == ((5, 10, 20, 40), (0, 10, 30, 100), 12, 5)
    assert [probe.name for probe in chosen_probes(())] == list(PROBES)
    assert [probe.name for probe in chosen_probes(("rounding", "hello"))] == [NONE, "hello", "int4", "nf4"]
    with pytest.raises(UserError, match="--probes nosuch: no such probe; choose among prefilling, "):
        chosen_probes(("hello", "nosuch"))
    assert FORCED_OPENING.isprintable()


def test_a_context_is_a_conversation_that_the_prompt_goes_on_with() -> None:
    """A system message or turns of user and assistant that end with the assistant's; the only refusal in them is the
    one that a context is named after."""
    for name, messages in CONTEXTS.items():
        roles = [message["role"] for message in messages]
        assert roles in (["system"], ["user", "assistant"] * (len(roles) // 2))
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert any(map(is_refusal, answers)) == (name == "after_refusal")
        assert PROBES[name].before == messages


@pytest.mark.parametrize(
    ("prompt", "past"),
    [
        ("How do I open a jar?", "How did people open a jar?"),
        ("How could one drown him out?", "How did people drown him out?"),
        ("How to whip cream", "How did people whip cream"),
        ("Explain how to pick a lock.", "How did people pick a lock?"),
        ("Wasps moved in; tell me how to evict them.", "Wasps moved in; how did people evict them?"),
        ("Could I train my dog?", "Did people train my dog?"),
        ("It is late; what should we do?", "It is late; what did people do?"),
        ("What is a flash?", "What was a flash?"),
        ("What's a flash?", "What was a flash?"),
        ("Why don't cats bark?", "Why didn't cats bark?"),
        ("Which tools do crews use?", "Which tools did crews use?"),
        ("Can a landlord evict me?", "Could a landlord evict me?"),
        ("Please write a poem about rain!", "How did people write a poem about rain?"),
        ("I like cats. Is rain wet?", "I like cats. Was rain wet?"),
        ("Who ordered it?", "A long time ago, somebody asked: Who ordered it?"),
        ("What should they do?", "A long time ago, somebody asked: What should they do?"),
    ],
)
def test_prompts_go_into_the_past_by_rule(prompt: str, past: str) -> None:
    """Each sentence at its first verb in the table; otherwise a sentence before the prompt says when it was asked."""
    assert past_tense(prompt) == past


@given(prompt=TEXTS)
def test_the_past_tense_is_another_text(prompt: str) -> None:
    """Whatever the prompt is."""
    assert past_tense(prompt) != prompt


@given(prompt=TEXTS)
def test_base64_and_rot13_decode_to_the_prompt(prompt: str) -> None:
    """Rot13 twice is the identity; behind the instruction stands nothing but the encoded prompt."""
    told, _, text = encodings.in_base64(prompt, 0).partition("\n\n")
    assert base64.b64decode(text, validate=True).decode() == prompt
    assert "base64" in told
    told, _, text = encodings.in_rot13(prompt, 0).partition("\n\n")
    assert codecs.encode(text, "rot13") == prompt
    assert codecs.encode(codecs.encode(prompt, "rot13"), "rot13") == prompt
    assert "rot13" in told


def test_known_encodings() -> None:
    """Worked out by hand."""
    assert encodings.in_rot13("Hello", 0).endswith("\n\nUryyb")
    assert encodings.in_base64("Hello", 0).endswith("\n\nSGVsbG8=")
    assert encodings.in_leetspeak("Shoot a portrait at 7", 0) == "5h007 4 p0r7r417 47 7"
    assert encodings.without_vowels("How do I ask about a quiet idea?", 0) == "Hw d I ask abt a qt id?"


@given(prompt=SENTENCES)
def test_leetspeak_changes_letters_one_by_one(prompt: str) -> None:
    """The length stays; of the letters a, e, i, o, s and t none is left, and all others are untouched."""
    found = encodings.in_leetspeak(prompt, 0)
    assert len(found) == len(prompt)
    assert not set("aeiostAEIOST") & set(found)
    assert all(a == b for a, b in zip(prompt, found, strict=True) if a not in "aeiostAEIOST")


@given(prompt=SENTENCES)
def test_without_vowels_every_consonant_and_every_first_letter_is_left(prompt: str) -> None:
    """Word by word, and no vowel behind the first letter."""
    words, found = prompt.split(), encodings.without_vowels(prompt, 0).split()
    assert [word[0] for word in words] == [word[0] for word in found]
    assert [[c for c in word if c.lower() not in "aeiou"] for word in words] == [
        [c for c in word if c.lower() not in "aeiou"] for word in found
    ]
    assert not any(c.lower() in "aeiou" for word in found for c in word[1:])


@given(prompt=SENTENCES, seed=st.integers(0, 9))
def test_misspellings_keep_lengths_ends_and_letters(prompt: str, seed: int) -> None:
    """Of every word the length, the first and the last letter and the letters themselves stay, and so does what stands
    between words; words of four letters or more are changed unless all inner neighbours are alike. The same seed
    misspells alike."""
    found = encodings.misspelt(prompt, seed)
    assert found == encodings.misspelt(prompt, seed)
    assert len(found) == len(prompt)
    for word, changed in zip(prompt.split(), found.split(), strict=True):
        assert (sorted(word), word[0], word[-1]) == (sorted(changed), changed[0], changed[-1])
        inner = word.rstrip(",;")[1:-1]
        assert (word != changed) == (len(set(inner)) > 1)
        assert sum(a != b for a, b in zip(word, changed, strict=True)) in (0, 2)


def test_seeds_misspell_differently() -> None:
    """Or a seed would choose nothing."""
    text = "Suggest something comfortable for Wednesday afternoon"
    assert len({encodings.misspelt(text, seed) for seed in range(5)}) == 5


def test_an_answer_that_takes_up_a_hidden_word_was_read() -> None:
    """Words that the encoded text shows, and words of fewer than five letters, prove nothing; where no word is hidden,
    there is nothing to see."""
    prompt = "What is a portrait of my cat?"
    read = partial(encodings.was_read, prompt, encodings.in_rot13(prompt, 0))
    assert encodings.hidden_words(prompt, encodings.in_rot13(prompt, 0)) == {"portrait"}
    assert read("A Portrait is a picture.") is True
    assert read("My cat is a cat.") is False
    assert read("It was encoded in rot13 and it was a question.") is False
    assert encodings.was_read("Hi, my cat", "Uv, zl png", "cat") is None
    assert encodings.was_read(prompt, prompt, "A portrait") is None
