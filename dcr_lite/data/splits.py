"""Which rows are trained and measured on, in which order: splits by focus word, samples, mixtures, batches."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, zip_longest

from sklearn.model_selection import GroupKFold

from dcr_lite.data.rows import Asked, Conversation, Pair, Prompt
from dcr_lite.errors import UserError


def split_by_focus(pairs: list[Pair], development: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, development) pairs without a common focus word; about ``development`` pairs are held back. As in the
    final measurement, development pairs test whether the separation generalises to focus words never trained on. Words
    that differ in case only are one. One with more pairs than are to be held back is trained on, where others suffice.

    Raises UserError for fewer than 4 pairs or a single focus word.
    """
    if len(pairs) < 4:
        raise UserError(f"{len(pairs)} pairs are too few to train on and to hold some back; give at least 4")
    groups: dict[str, list[Pair]] = {}
    for word, pair in zip(_focus_words(pairs), pairs, strict=True):
        groups.setdefault(word, []).append(pair)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    sizes: Counter[str] = Counter()  # of the words without regard to case, in the order in which they are drawn
    for word in order:
        sizes[_folded(word)] += len(groups[word])
    if len(sizes) < 2:
        raise UserError("all pairs share one focus word, so none is left to train on; vary the field focus")
    *_, last = sizes
    wanted = min(development, len(pairs) // 2)
    small_ones_suffice = sum(size for size in sizes.values() if size <= wanted) >= wanted
    held: list[Pair] = []
    training: list[Pair] = []
    sides: dict[str, list[Pair]] = {}
    for word in order:
        focus = _folded(word)
        only_one_left = not training and focus == last
        too_large = small_ones_suffice and sizes[focus] > wanted
        side = training if len(held) >= wanted or only_one_left or too_large else held
        sides.setdefault(focus, side).extend(groups[word])
    return training, held


def folds_by_focus(pairs: Sequence[Pair], folds: int) -> list[int]:
    """The fold of each pair for cross-validation, 0 to at most ``folds`` - 1: folds of about one size, without a common
    focus word. ``pairs`` have at least two focus words."""
    first: dict[str, str] = {}  # of each word, as it is written first
    focus = [first.setdefault(_folded(word), word) for word in _focus_words(pairs)]
    splits = GroupKFold(min(folds, len(first))).split(focus, groups=focus)
    return [fold for _, fold in sorted((i, fold) for fold, (_, within) in enumerate(splits) for i in within.tolist())]


def _focus_words(pairs: Sequence[Pair]) -> list[str]:
    """The focus word of each pair as it is written; of a pair without one, one of its own."""
    return [pair.focus or str(i) for i, pair in enumerate(pairs)]


def _folded(word: str) -> str:
    """What "Ponzi", "ponzi" and "ponzi " have in common."""
    return word.strip().casefold()


def pair_batches(n_pairs: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """The numbers of the pairs in the batch of each step. A batch holds both sides of its pairs, so it is balanced. No
    pair comes twice in a batch, and every pair comes once before any comes again.

    Raises UserError for a batch of fewer than 2 pairs.
    """
    per_step = min(batch_size // 2, n_pairs)
    if per_step < 2:
        raise UserError(
            f"a contrastive batch needs at least 4 prompts (2 pairs); asked for {batch_size}, {n_pairs} pairs"
        )
    rng = random.Random(seed)
    batches: list[list[int]] = []
    queue: list[int] = []
    for _ in range(steps):
        if len(queue) < per_step:
            fresh = list(range(n_pairs))
            rng.shuffle(fresh)
            # The rest of the last pass goes first. No pair of it may come again in the same batch.
            beside = [i for i in fresh if i not in queue][: per_step - len(queue)]
            queue = queue + beside + [i for i in fresh if i not in beside]
        batches.append(queue[:per_step])
        queue = queue[per_step:]
    return batches


def places_read(n_pairs: int, unseen: int, batches: list[list[int]], first: int, last: int) -> list[int]:
    """The places that stage 1 reads among all toxic sides of ``n_pairs`` pairs, their seemingly toxic sides, and behind
    them ``unseen`` other prompts: these, and both sides of the pairs in ``batches``, of the ``first`` and of the
    ``last`` ones."""
    pairs = {*range(min(first, n_pairs)), *range(max(0, n_pairs - last), n_pairs)}.union(*batches)
    return sorted({*pairs, *(n_pairs + i for i in pairs), *range(2 * n_pairs, 2 * n_pairs + unseen)})


def safety_mixture(
    instructions: list[Conversation],
    refusals: list[Conversation],
    n_instructions: int,
    n_refusals: int,
    seed: int,
    augmentation: Sequence[Conversation] = (),
) -> list[Conversation]:
    """Rows for safety SFT: instructions and refusals, each list as ``evenly_drawn``, and ``augmentation``, shuffled.

    A larger number adds rows and replaces none, and the number drawn of one list does not change the rows of the other.
    Even, since twenty refusals drawn at random would leave out whole kinds, which differ from seed to seed.
    augmentation: seemingly toxic prompts with helpful answers, for the data-augmentation baseline.
    """
    mixture = evenly_drawn("instructions", instructions, n_instructions, seed)
    mixture += [replace(row, refuses=True) for row in evenly_drawn("refusals", refusals, n_refusals, seed)]
    mixture += augmentation
    random.Random(seed).shuffle(mixture)
    return mixture


def most_toxic(rows: list[Conversation], toxicity: list[float], least: int) -> list[Conversation]:
    """The rows with a ``toxicity`` above 0, in the order given; at least ``least`` rows, the most toxic ones."""
    order = sorted(range(len(rows)), key=lambda i: -toxicity[i])
    chosen = order[: max(least, sum(value > 0 for value in toxicity))]
    return [rows[i] for i in sorted(chosen)]


def evenly_drawn(name: str, rows: list[Conversation], n: int, seed: int) -> list[Conversation]:
    """``n`` rows in random order, one of every kind before any kind comes again, so that the first few cover the kinds.
    Raises UserError where there are fewer; the message calls them ``name``."""
    if n > len(rows):
        raise UserError(f"{n} {name} asked for and {len(rows)} given; lower the number or give more rows")
    rng = random.Random(seed)
    kinds: dict[str, list[Conversation]] = {}
    for row in rng.sample(rows, len(rows)):
        kinds.setdefault(row.kind, []).append(row)
    rounds = zip_longest(*(kinds[kind] for kind in rng.sample(sorted(kinds), len(kinds))))
    return [row for one_of_each in rounds for row in one_of_each if row is not None][:n]


def sample(prompts: list[Prompt], rows: int | None) -> list[Prompt]:
    """At most ``rows`` prompts of each set and label, all of them for None. What a set has twice counts once.

    Drawn with a fixed seed, since some sets are sorted by topic. Both sides of matched pairs are drawn.
    Raises UserError for ``rows`` below 1.
    """
    prompts = list(dict.fromkeys(prompts))
    if rows is None:
        return prompts
    if rows < 1:
        raise UserError(f"--rows {rows}: at least 1 is needed")
    groups: dict[tuple[str, str], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.source, prompt.label), []).append(prompt)
    return [
        prompt
        for group in groups.values()
        for prompt in (group if rows >= len(group) else random.Random(0).sample(group, rows))
    ]


def characters(row: Asked) -> int:
    """How long a prompt is with the messages before it, to put rows of similar length together."""
    return len(row.prompt) + sum(len(content) for _, content in row.before)


def digest_of(prompts: list[Prompt]) -> str:
    """SHA-256 of prompts to measure, by which what has been measured of them is told from that of others."""
    texts = json.dumps([[p.prompt, p.label, p.source, *p.before] for p in prompts])
    return hashlib.sha256(texts.encode()).hexdigest()


def sft_batches(lengths: list[int], refuses: list[bool], batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Batches of row numbers for all epochs. Refusals are spread evenly over the steps: grouped by length they would
    come in bunches, and the last bunch would decide how much the model refuses. Others are grouped by length. A batch
    too small for its share of refusals leaves one to the next."""
    rng = random.Random(seed)
    n, n_batches = len(lengths), -(-len(lengths) // batch_size)
    batches: list[list[int]] = []
    for _ in range(epochs):
        order = rng.sample(range(n), n)
        refusing = [i for i in order if refuses[i]]
        others = iter(_similar_together([i for i in order if not refuses[i]], lengths, batch_size, rng))
        taken = 0
        for b in range(n_batches):
            size = (b + 1) * n // n_batches - b * n // n_batches
            first = refusing[taken : (b + 1) * len(refusing) // n_batches][:size]
            taken += len(first)
            batches.append(first + list(islice(others, size - len(first))))
    return batches


def _similar_together(rows: list[int], lengths: list[int], batch_size: int, rng: random.Random) -> list[int]:
    """Rows with those of similar length next to each other: sorted within windows of eight batches, so that every epoch
    has other batches, and the batches shuffled."""
    groups = []
    for start in range(0, len(rows), 8 * batch_size):
        window = sorted(rows[start : start + 8 * batch_size], key=lambda i: lengths[i])
        groups += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [i for group in rng.sample(groups, len(groups)) for i in group]
