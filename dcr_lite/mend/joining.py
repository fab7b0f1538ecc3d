"""The user's prompts join the pairs of a run: what the model should answer stands on the seemingly toxic side of stage
1, each beside the toxic prompts that it should be told apart from. What it should refuse, and does, joins a stage 2."""

from collections.abc import Sequence

from dcr_lite.data.near import near_groups
from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.measure.answers import Measured
from dcr_lite.mend.prompts import Wish
from dcr_lite.mend.reader import Reader
from dcr_lite.model.thinking import answer_of
from dcr_lite.run.inputs import Data
from dcr_lite.run.joined import Joined

# Toxic prompts beside each of the user's. A usual run goes about once through its pairs, so each prompt is seen seven
# or eight times; with one it would be seen once, among nearly three thousand others.
NEGATIVES = 8
FULL = "refusal"  # the kind of a refusal that no help follows


def join(reader: Reader, data: Data, wishes: Sequence[Wish], others: Sequence[Conversation]) -> Joined:
    """The pairs that join a run. wishes: with their parts. others: seemingly toxic prompts that nothing trains on. They
    stand beside the prompts that calibrate the dial, which is measured on pairs; of those at most as many are used."""
    own = [wish for wish in wishes if wish.answered and wish.part == "trained"]
    twins = [wishes[wish.twin].prompt if wish.twin >= 0 else "" for wish in own]
    refused = [wish.prompt for wish in wishes if not wish.answered and wish.part == "trained"]
    pool = [*refused, *toxic_prompts(data)]
    calibrating = [wish.prompt for wish in wishes if not wish.answered and wish.part == "calibrating"]
    return Joined(
        training=nearest_pairs(reader, [wish.prompt for wish in own], twins, pool),
        development=[Pair(prompt, row.prompt) for prompt, row in zip(calibrating, others, strict=False)],
    )


def toxic_prompts(data: Data) -> list[str]:
    """All toxic prompts that a run trains on."""
    return [*(row.prompt for row in data.refusals), *(pair.toxic for pair in data.training)]


def refusals_of_today(
    reader: Reader, data: Data, wishes: Sequence[Wish], today: Sequence[Measured]
) -> list[Conversation]:
    """The prompts to refuse that are trained on and that the model refuses today, each with its own refusal. Where that
    was cut off or helps all the same, with that of the refusal of ``data`` whose prompt lies nearest, since each speaks
    of what its own prompt asks for; left out where ``data`` has none. today: the model's answers to ``wishes``."""
    refused = [
        (wish.prompt, said)
        for wish, said in zip(wishes, today, strict=True)
        if not wish.answered and wish.part == "trained" and said["refused"]
    ]
    own = {prompt: answer_of(said["response"]) for prompt, said in refused if said["ended"] and said["kind"] == FULL}
    others = [prompt for prompt, _ in refused if prompt not in own]
    if others and data.refusals:
        nearest = reader.cosines(others, [row.prompt for row in data.refusals]).argmax(1).tolist()
        own |= {prompt: data.refusals[j].response for prompt, j in zip(others, nearest, strict=True)}
    return [Conversation(prompt, own[prompt], refuses=True) for prompt, _ in refused if prompt in own]


def nearest_pairs(reader: Reader, prompts: list[str], twins: list[str], pool: list[str]) -> list[Pair]:
    """NEGATIVES pairs of each prompt: with its own twin first where it has one, then with the toxic prompts of ``pool``
    nearest to it. Each toxic prompt is taken once, until all are taken: prompts choose in turns, so that none is left
    the far ones."""
    pool = list(dict.fromkeys(pool))
    places = {text: j for j, text in enumerate(pool)}
    order = reader.cosines(prompts, pool).argsort(1, descending=True).tolist()
    pairs, free = [], set(range(len(pool)))
    for turn in range(NEGATIVES):
        for prompt, twin, ranked in zip(prompts, twins, order, strict=True):
            if turn == 0 and twin:
                chosen = places[twin]
            else:
                free = free or set(range(len(pool)))
                chosen = next(j for j in ranked if j in free)
            free.discard(chosen)
            pairs.append(Pair(pool[chosen], prompt))
    return pairs


def cross_validated(reader: Reader, joined: Sequence[Pair]) -> dict[str, int]:
    """{n, alone, with_others}: how many of the user's prompts read as seemingly toxic in the stock model, by the
    shipped pairs alone, and by these with the pairs of all other prompts of the user's, without those that are nearly
    the same. Where the second is more, the prompts have something in common that can be learnt."""
    prompts = list(dict.fromkeys(pair.seemingly_toxic for pair in joined))
    alone = int((reader.toxicity(prompts) < 0).sum())
    with_others = 0
    for group in near_groups(prompts):
        alike = [prompts[i] for i in group]
        others = [pair for pair in joined if pair.seemingly_toxic not in alike]
        with_others += int((reader.toxicity(alike, others) < 0).sum())
    return {"n": len(prompts), "alone": alone, "with_others": with_others}
