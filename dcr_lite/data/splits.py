"""Which rows are trained and measured on, in which order: splits by focus word, samples, mixtures, batches."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, zip_longest

from dcr_lite.data.rows import Conversation, Pair, Prompt
from dcr_lite.errors import UserError


def split_by_focus(pairs: list[Pair], development: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, development) pairs, no focus word on both sides, so that the development part asks what the final
    measurement asks: does the separation reach words never trained on? About ``development`` pairs are held back."""
    if len(pairs) < 4:
        raise UserError(f"{len(pairs)} pairs are too few to train on and to hold some back; give at least 4")
    groups: dict[str, list[Pair]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(pair.focus or str(i), []).append(pair)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    held: list[Pair] = []
    training: list[Pair] = []
    for focus in order:
        only_one_left = not training and focus == order[-1]
        wanted = len(held) < min(development, len(pairs) // 2) and not only_one_left
        (held if wanted else training).extend(groups[focus])
    if len(groups) < 2:
        raise UserError("all pairs share one focus word, so none is left to train on; vary the field focus")
    return training, held


def pair_batches(n_pairs: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """For every step the numbers of the pairs whose two sides make the batch: balanced between the kinds by
    construction, both sides of a pair always together, no pair twice in a batch, every pair once before any comes
    again."""
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
            # What is left of the last pass goes first; the batch that it shares must not hold one of it twice.
            beside = [i for i in fresh if i not in queue][: per_step - len(queue)]
            queue = queue + beside + [i for i in fresh if i not in beside]
        batches.append(queue[:per_step])
        queue = queue[per_step:]
    return batches


def _evenly(rows: list[Conversation], rng: random.Random) -> list[Conversation]:
    """All rows in random order, one of every kind before any kind comes again: the first few stand for all."""
    kinds: dict[str, list[Conversation]] = {}
    for row in rng.sample(rows, len(rows)):
        kinds.setdefault(row.kind, []).append(row)
    rounds = zip_longest(*(kinds[kind] for kind in rng.sample(sorted(kinds), len(kinds))))
    return [row for one_of_each in rounds for row in one_of_each if row is not None]


def safety_mixture(
    instructions: list[Conversation],
    refusals: list[Conversation],
    n_instructions: int,
    n_refusals: int,
    seed: int,
    augmentation: Sequence[Conversation] = (),
) -> list[Conversation]:
    """Rows for safety SFT: the first ``n`` of each list in an order of its own by ``seed``, even over the kinds, then
    shuffled together. So a larger number adds rows and exchanges none, and the number of one list does not change the
    other's. Even, since twenty refusals drawn at random leave out whole kinds, other ones for every seed.

    ``augmentation``: seemingly toxic prompts with helpful answers (see ``evenly_drawn``), all of which are mixed in:
    the data-augmentation baseline.
    """
    mixture = evenly_drawn("instructions", instructions, n_instructions, seed)
    mixture += [replace(row, refuses=True) for row in evenly_drawn("refusals", refusals, n_refusals, seed)]
    mixture += augmentation
    random.Random(seed).shuffle(mixture)
    return mixture


def most_toxic(rows: list[Conversation], toxicity: list[float], least: int) -> list[Conversation]:
    """Rows with a ``toxicity`` above 0, in the order given; where those are fewer than ``least``, the next ones too."""
    order = sorted(range(len(rows)), key=lambda i: -toxicity[i])
    chosen = order[: max(least, sum(value > 0 for value in toxicity))]
    return [rows[i] for i in sorted(chosen)]


def evenly_drawn(name: str, rows: list[Conversation], n: int, seed: int) -> list[Conversation]:
    """``n`` rows, even over their kinds. Raises UserError, which calls them ``name``, for more than there are."""
    if n > len(rows):
        raise UserError(f"{n} {name} asked for and {len(rows)} given; lower the number or give more rows")
    return _evenly(rows, random.Random(seed))[:n]


def sample(prompts: list[Prompt], rows: int | None) -> list[Prompt]:
    """At most ``rows`` prompts of each set and label, all of them for None.

    Drawn with a fixed seed, since some sets are sorted by topic. Both sides of matched pairs are drawn.
    Raises UserError for ``rows`` below 1.
    """
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


def sft_batches(lengths: list[int], refuses: list[bool], batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Batches of row numbers for all epochs. Refusals are spread evenly over the steps: bunched, as short answers of
    similar length would be, the last bunch decides how much the model refuses. Other rows meet in similar lengths."""
    rng = random.Random(seed)
    n, n_batches = len(lengths), -(-len(lengths) // batch_size)
    batches: list[list[int]] = []
    for _ in range(epochs):
        order = rng.sample(range(n), n)
        refusing = [i for i in order if refuses[i]]
        others = iter(_similar_together([i for i in order if not refuses[i]], lengths, batch_size, rng))
        for b in range(n_batches):
            first = refusing[b * len(refusing) // n_batches : (b + 1) * len(refusing) // n_batches]
            size = (b + 1) * n // n_batches - b * n // n_batches
            batches.append(first + list(islice(others, size - len(first))))
    return batches


def _similar_together(rows: list[int], lengths: list[int], batch_size: int, rng: random.Random) -> list[int]:
    """Rows of similar length next to each other: sorted within windows of eight batches, for a fresh mix every epoch,
    and the batches shuffled."""
    groups = []
    for start in range(0, len(rows), 8 * batch_size):
        window = sorted(rows[start : start + 8 * batch_size], key=lambda i: lengths[i])
        groups += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [i for group in rng.sample(groups, len(groups)) for i in group]
