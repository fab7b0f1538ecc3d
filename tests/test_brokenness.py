"""Claims about broken answers: what is broken, what only looks so, and the numbers behind it. All texts are our own."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr_lite.data.rows import read_conversations
from dcr_lite.files import SHIPPED
from dcr_lite.measure.brokenness import before_repeating, brokenness, is_broken, repeated_share, repeats_itself

QUESTION = "How do I kill a Python process?"
LOOP = "the cat sat on the mat and looked at me "

BROKEN = [
    (QUESTION, ""),
    (QUESTION, " \n\t\u00a0"),
    (QUESTION, "the " * 40),
    (QUESTION, "I am a process. I am a process. " * 8),
    (QUESTION, "First open the task manager and look for the process. " * 6),
    (QUESTION, "```\n" + "print the name of the process and wait for it\n" * 9),  # also in code
    (QUESTION, "1. The 2. The 3. The " * 8),
    (QUESTION, "!!!!!!!!!!!!!!!!"),
    (QUESTION, ". . . . . . . . ."),
    (QUESTION, "aaaaaaaaaaaaaaaaaaaaaaaa"),
    (QUESTION, "\ufffd\ufffd \ufffd\ufffd\ufffd a"),
    (QUESTION, "xkcdqwrt pqrstvv bcdfgh zzxcvb"),
    (QUESTION, "你好吗今天的天气怎么样我们去公园吧因为天气很好哦你说呢"),
    (QUESTION, "Вы можете завершить процесс с помощью команды в терминале."),
    ("你好吗？今天的天气怎么样", "The weather is nice today and we should go to the park."),
]
WHOLE = [
    ("What is 2 + 2?", "4"),
    ("What is the capital of France?", "Paris"),
    ("Is it safe?", "No."),
    ("Did it work?", "\N{THUMBS UP SIGN}"),
    ("Do you like rain?", "No, no, no, no, no!"),
    ("Scream!", "Aaaargh!"),
    (QUESTION, "```bash\nkill -9 1234\nkill -9 1235\nkill -9 1236\n```"),
    (QUESTION, "kill -9 $(pgrep -f app.py)"),
    (QUESTION, "for (int i = 0; i < n; i++) { a[i] = b[i] + c[i]; } return a[n - 1] * b[n - 1];"),
    ("Show me a table.", "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |"),
    ("Count to fifty.", " ".join(map(str, range(50)))),
    ("Count in binary.", " ".join(f"{i:b}" for i in range(50))),
    ("Which squares do you know?", "\n".join(f"{i}. {i * i}" for i in range(40))),
    ("What shall I buy?", "- milk\n- bread\n- eggs\n- butter\n- pears\n- flour\n- sugar\n- tea\n- coffee"),
    ("Sing!", "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily,\nLife is but a dream."),
    (
        "Write a poem with a refrain.",
        "\n".join(
            verse + "\nAnd the rain it falls, and the rain it falls, all the day on the old stone walls.\n"
            for verse in (
                "The morning came with a basket of light, the cat by the window had sung all the night.",
                "At noon the baker put bread on the sill, and smoke from his chimney went over the hill.",
                "By evening the lamps in the harbour were lit, the fisherman told us a story of it.",
            )
        ),
    ),
    ("Where is it?", "https://example.org/a/very/long/path/that/goes/on/and/on/index.html"),
    ("The longest German word?", "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz"),
    ("Name some acronyms.", "HTTPS, XHTML, BBC, WWF, NTFS"),
    ("What is the normal density?", "f(x) = 1/(σ√(2π)) exp(−(x−μ)²/(2σ²)), with mean μ and deviation σ"),
    ("How do I greet a friend in Russian?", "Здравствуйте! Привет! Доброе утро, добрый день."),
    ("Translate: good morning, friends", "おはようございます、みなさん、いいてんきですね、げんきですか"),
    ("Wie geht es dir?", "Mir geht es gut, danke. Und dir? Ich hoffe, du hattest einen schönen Tag."),
    ("你好吗？今天的天气怎么样", "今天天气很好，阳光明媚，适合出去散步。你想去公园吗？"),
    ("Say the word ham 30 times.", "ham " * 30),
]  # fmt: skip

texts = st.lists(st.sampled_from([LOOP, "a ", "`", "```", "Вы ", "!!!", "\n", "4"]) | st.text(max_size=20), max_size=12)


@pytest.mark.parametrize(("prompt", "response"), BROKEN)
def test_broken_answers_are_seen(prompt: str, response: str) -> None:
    """Empty ones, loops of one word or of sentences, signs without words, and another script than the prompt's."""
    assert is_broken(prompt, response), brokenness(prompt, response)


@pytest.mark.parametrize(("prompt", "response"), WHOLE)
def test_what_only_looks_broken_is_not(prompt: str, response: str) -> None:
    """Short answers, code, tables, lists, numbers, refrains, long words, formulas, other languages where they were
    asked for, and repetition that was."""
    assert not is_broken(prompt, response), brokenness(prompt, response)


@pytest.mark.parametrize("name", ["refusals", "instructions", "augmentation", "heldout_instructions"])
@pytest.mark.parametrize("words", [20, 10_000])
def test_no_shipped_answer_is_broken(name: str, words: int) -> None:
    """In full or cut to its first words."""
    rows = read_conversations(SHIPPED / f"{name}.jsonl")
    assert [row for row in rows if is_broken(row.prompt, " ".join(row.response.split(" ")[:words]))] == []


def test_numbers_are_what_they_are_called() -> None:
    """Counted by hand: pairs of words, words in repeated phrases, letters of another script, pieces that are no
    words."""
    found = brokenness("Hello?", "a b a b c Да !!!!!!!!")
    assert (found.empty, found.words) == (False, 6)
    assert found.distinct == 4 / 5  # ab ba ab bc c-da
    assert (found.foreign, found.foreign_letters) == (2 / 7, 2)
    assert found.no_words == 1 / 7
    assert found.repeated == 0
    assert brokenness("Hello?", "हिन्दी में नमस्ते, l'e\u0301cole, don't").words == 5  # vowels and accents end no word
    assert brokenness("Hello?", "日本語 で\u3059").words == 5
    assert repeated_share("one two three four five six seven eight nine " * 3) == 18 / 27  # the first saying is none
    assert repeated_share("one two three four five six seven eight nine " * 2) == 0


@given(texts.map("".join), texts.map("".join))
def test_shares_are_shares(prompt: str, response: str) -> None:
    """Any text whatever gets numbers between 0 and 1, the same ones each time."""
    found = brokenness(prompt, response)
    for share in (found.distinct, found.repeated, found.foreign, found.no_words):
        assert 0 <= share <= 1
    assert found == brokenness(prompt, response)


@given(texts.map("".join))
def test_an_answer_that_ends_in_a_long_loop_is_broken(beginning: str) -> None:
    """Whatever came before, and it stays broken the longer the loop is."""
    many = 20 + len(beginning.split())
    shares = [brokenness(QUESTION, beginning + " " + LOOP * times).repeated for times in (many, 2 * many)]
    assert is_broken(QUESTION, beginning + " " + LOOP * many)
    assert shares[0] <= shares[1]


@given(texts.map("".join), st.text(" \n\t", max_size=5))
def test_white_space_around_an_answer_does_not_matter(response: str, space: str) -> None:
    assert brokenness(QUESTION, space + response + space) == brokenness(QUESTION, response)


@pytest.mark.parametrize("pattern", ["a ", "question ", "`", "```", "!", ". ", "Да", "\ufdfa", "x" * 50 + " "])
def test_hostile_repetition_stays_fast(pattern: str) -> None:
    """Long answers without an end are measured in a moment."""
    start = time.process_time()
    assert is_broken(QUESTION, pattern * 10_000) or "`" in pattern
    assert time.process_time() - start < 1


@pytest.mark.parametrize(("text", "repeats"), [(LOOP * 3, True), (LOOP * 2, False)])
def test_a_phrase_said_three_times_repeats(text: str, repeats: bool) -> None:
    assert repeats_itself(text) == repeats


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", None),
        ("The cat sat on the mat and watched the rain. The cat sat on the mat.", None),
        ("I have a cat and a dog and a bird. " * 2, None),
        ("Well,\n\nI have a cat and a dog and a bird. " * 3, "Well,\n\nI have a cat and a dog and a bird."),
        ("Yes. " + "very " * 10, "Yes. very"),
        ("| a | b | c | d | e | f |\n" + "| --- " * 6 + "|\n| 1 | 2 | 3 | 4 | 5 | 6 |", None),
        ("\n".join(f"{i}. Mix the flour with the milk." for i in range(9)), None),
    ],
)
def test_an_answer_is_kept_up_to_where_it_repeats_itself(text: str, kept: str | None) -> None:
    """Eight words in a row, said three times: all before the second is kept. The lines of a list may begin alike, and
    the line below the head of a table, whose eight words begin within themselves, says nothing again."""
    assert before_repeating(text) == (text if kept is None else kept)
