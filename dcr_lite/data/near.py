"""Prompts that are nearly the same, and words that tell two kinds of prompt apart."""

from collections import Counter
from collections.abc import Sequence

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

NEAR = 0.6  # cosine of character 4-gram counts: above it two prompts say the same in nearly the same words
MOST_WORDS = 5  # of a list of words that counts as telling two kinds apart
PROMPTS_A_WORD = 4  # that such a list has to cover for each of its words: of few prompts any words tell something
COVERED = 0.9  # of the prompts of one kind, by such a list
ELSEWHERE = 0.01  # of the prompts of another kind that may hold a word of it


def normalised(prompt: str) -> str:
    """What two prompts have in common that count as the same."""
    return " ".join(prompt.casefold().split())


def near_duplicates(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int, float]]:
    """(number in ``left``, number in ``right``, cosine) of every two prompts that are nearly the same."""
    if not left or not right:
        return []
    grams = CountVectorizer(analyzer="char", ngram_range=(4, 4), preprocessor=str.casefold)
    try:
        counts = normalize(grams.fit_transform([*left, *right]).astype(float))
    except ValueError:  # not one prompt of four characters
        return []
    cosine = (counts[: len(left)] @ counts[len(left) :].T).tocoo()
    near = cosine.data >= NEAR  # few of what can be millions
    return list(zip(*(part[near].tolist() for part in (cosine.row, cosine.col, cosine.data)), strict=True))


def near_groups(*columns: Sequence[str]) -> list[list[int]]:
    """The numbers of rows in groups: no two rows of different groups are nearly the same in any of the columns, which
    are of one length. An empty text is near to none."""
    group_of = [[row] for row in range(len(columns[0]))]
    for texts in columns:
        for i, j, _ in near_duplicates(texts, texts):
            if group_of[i] is not group_of[j]:
                joined = group_of[i] + group_of[j]
                for row in joined:
                    group_of[row] = joined
    return list({id(group): group for group in group_of}.values())


def telltale_words(own: Sequence[str], *others: Sequence[str]) -> list[str]:
    """A few words, each in hardly any prompt of any of ``others``, of which COVERED of ``own`` hold one, chosen one by
    one by how many further prompts they are in; empty where there is no such list."""
    words_of = CountVectorizer(token_pattern=r"(?u)\b\w+\b").build_analyzer()
    usual: set[str] = set()
    for texts in others:
        held = Counter(word for text in texts for word in set(words_of(text)))
        usual |= {word for word, prompts in held.items() if prompts > ELSEWHERE * len(texts)}
    left = [set(words_of(text)) - usual for text in own]
    chosen: list[str] = []
    while len(chosen) < min(MOST_WORDS, len(own) // PROMPTS_A_WORD):
        counts: dict[str, int] = {}
        for words in left:
            for word in words:
                counts[word] = counts.get(word, 0) + 1
        if not counts:
            break
        chosen.append(max(counts, key=lambda word: (counts[word], word)))
        left = [words for words in left if chosen[-1] not in words]
        if len(left) <= (1 - COVERED) * len(own):
            return chosen
    return []
