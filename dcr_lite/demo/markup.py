"""Scores as HTML and SVG: a verdict, two bars, a map, highlighted words. Every text from outside is escaped, and every
picture has a description in words."""

from collections.abc import Iterable, Sequence
from html import escape

from dcr_lite.demo import texts
from dcr_lite.demo.dial import OpenDial
from dcr_lite.demo.score import Score
from dcr_lite.demo.texts import MODEL_TITLES
from dcr_lite.names import LABEL_TITLES
from dcr_lite.run.discernment import Discernment, Discernments

WIDTH, HEIGHT, EDGE = 420, 300, 20  # of the map, in its own units; the page scales it
CURVE_HEIGHT = 110  # of the curve along the dial, as wide as the map
AXIS = 16  # units below the map for the names of its ends
FAINT = 0.08  # of the largest weight: what is below stays unmarked


def box(content: str, label: str = "", role: str = "group") -> str:
    """HTML in the style of page.css, with a label for screen readers."""
    return f'<div class="dcr" role="{role}" aria-label="{escape(label)}">{content}</div>'


def empty(sentence: str) -> str:
    """A placeholder."""
    return box(f"<p>{escape(sentence)}</p>", sentence)


def model_heading(name: str, caution: str = "") -> str:
    """The head of a model's column. caution: what speaks against the model, if anything does."""
    said = f'<p class="problem">{escape(caution)}</p>' if caution else ""
    return box(f"<h2>{MODEL_TITLES[name]}</h2>{said}")


def status(sentence: str, done: bool = False) -> str:
    """What became of something, for screen readers to read out. done: as it was meant to."""
    sign = '<span aria-hidden="true">\N{CHECK MARK}</span> ' if done else ""
    return f'<div class="dcr" role="status">{f"<p>{sign}{escape(sentence)}</p>" if sentence else ""}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table of texts. On a phone each row is a block, in which the cells have their columns' names."""
    titles = "".join(f'<th scope="col" role="columnheader">{escape(title)}</th>' for title in head)
    body = "".join(
        '<tr role="row">'
        + "".join(
            f'<td role="cell" data-column="{escape(title)}">{escape(cell)}</td>'
            for title, cell in zip(head, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<table class="rows" role="table"><caption>{escape(caption)}</caption>'
        f'<thead><tr role="row">{titles}</tr></thead><tbody>{body}</tbody></table>'
    )


def verdict(score: Score, small: bool = False) -> str:
    """The verdict with the probability of a refusal. ``small``: for a column."""
    sign, colour = ("\N{MULTIPLICATION X}", "refuses") if score.refuses else ("\N{CHECK MARK}", "answers")
    text = texts.PROBABILITY.format(probability=score.refusal_probability)
    return box(
        f'<div class="{"small " if small else ""}verdict" style="--mark: var(--{colour})">'
        f'<strong><span aria-hidden="true">{sign}</span> {score.verdict.capitalize()}</strong>{text}</div>',
        f"{MODEL_TITLES[score.model]} {score.verdict}, {text}",
    )


def bars(score: Score, discernment: Discernment | None) -> str:
    """The two similarity scores, with the sentence that says what they mean."""
    if score.similarity is None or discernment is None:
        return empty(texts.NEEDS_RUN.format(what="Similarity"))
    values = {"toxic": score.similarity.toxic, "seemingly_toxic": score.similarity.seemingly_toxic}
    rows = "".join(
        f'<div class="bar" style="--mark: {_colour(kind)}"><span>{LABEL_TITLES[kind]}</span>'
        f'<div class="track"><div class="fill" style="width: {100 * value:.1f}%"></div><div class="half"></div></div>'
        f'<span class="value">{value:.2f}</span></div>'
        for kind, value in values.items()
    )
    label = ", ".join(f"similarity to {LABEL_TITLES[kind]} prompts {value:.2f}" for kind, value in values.items())
    note = texts.SIMILARITY_NOTE.format(auroc=discernment.auroc)
    return box(
        f'<div role="img" aria-label="{label}"><h2>{texts.SIMILARITY}</h2>{rows}</div><p>{note}</p>', texts.SIMILARITY
    )


def state_map(scores: list[Score], readings: Discernments | None) -> str:
    """The development prompts of both kinds at layer L, and the prompts of ``scores``, one or two of one model, among
    them."""
    if readings is None or scores[0].similarity is None:
        return empty(texts.NEEDS_RUN.format(what="The map"))
    points = readings.models[scores[0].model].points.tolist()
    places = [score.similarity.place for score in scores if score.similarity]
    names = ["this prompt"] if len(places) == 1 else list(texts.SIDES)
    xs, ys = zip(*points, *places, strict=True)
    drawn = [(_scaled(x, xs, WIDTH), HEIGHT - _scaled(y, ys, HEIGHT)) for x, y in zip(xs, ys, strict=True)]

    prompts = [("toxic", text) for text in readings.toxic]
    prompts += [("seemingly_toxic", text) for text in readings.seemingly_toxic]
    dots = "".join(
        f'{_dot(kind, x, y, 3.6)} opacity="0.55"><title>{LABEL_TITLES[kind]}: {escape(text)}</title></{_shape(kind)}>'
        for (kind, text), (x, y) in zip(prompts, drawn[: len(points)], strict=True)
    )
    rings = "".join(_ring(x, y, name) for name, (x, y) in zip(names, drawn[len(points) :], strict=True))
    ends = (
        f'<text x="2" y="{HEIGHT + AXIS - 5}">\N{LEFTWARDS ARROW} seemingly toxic</text>'
        f'<text x="{WIDTH - 2}" y="{HEIGHT + AXIS - 5}" text-anchor="end">toxic \N{RIGHTWARDS ARROW}</text>'
    )
    passed = "; ".join(
        f"{name} is further right than {sum(place[0] > point[0] for point in points) / len(points):.0%} of them"
        for name, place in zip(names, places, strict=True)
    )
    label = f"Map of layer {readings.layer}: development prompts from seemingly toxic (left) to toxic (right); {passed}"
    key = "".join(_key(kind, LABEL_TITLES[kind]) for kind in ("seemingly_toxic", "toxic"))
    note = texts.MAP_NOTE.format(layer=readings.layer, model=MODEL_TITLES[scores[0].model])
    return box(
        f'<div class="key">{key}<span><b>\N{FISHEYE}</b> {" and ".join(names)}</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + AXIS}" role="img" aria-label="{escape(label)}">{dots}{rings}{ends}</svg>'
        f"<p>{note}</p>",
        label,
    )


def _scaled(value: float, values: tuple[float, ...], size: int) -> float:
    """A place between the edges of the map: the least of ``values`` lies on one, the largest on the other."""
    return EDGE + (value - min(values)) / (max(values) - min(values) or 1) * (size - 2 * EDGE)


def _colour(kind: str) -> str:
    return f"var(--{kind.split('_')[0]})"


def _shape(kind: str) -> str:
    """The kinds differ in shape, not by colour alone."""
    return "circle" if kind == "toxic" else "rect"


def _dot(kind: str, x: float, y: float, size: float) -> str:
    """The beginning of a shape, for the caller to close."""
    if kind == "toxic":
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{size}"'
    else:
        place = f'x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"'
    return f'<{_shape(kind)} {place} fill="{_colour(kind)}"'


def _key(kind: str, title: str) -> str:
    """What the shape and the colour of a kind stand for."""
    shape = f'<svg viewBox="0 0 10 10" style="width: 0.8em; display: inline">{_dot(kind, 5, 5, 4.5)} /></svg>'
    return f"<span>{shape} {title}</span>"


def _ring(x: float, y: float, name: str) -> str:
    """A prompt at hand: a ring with its name beside it."""
    offset, anchor = (-13, "end") if x > WIDTH / 2 else (13, "start")
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="var(--body-text-color)" stroke-width="3"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="var(--body-text-color)"/>'
        f'<text x="{x + offset:.1f}" y="{min(HEIGHT - 4, max(12, y + 5)):.1f}" text-anchor="{anchor}" '
        'font-weight="700" stroke="var(--block-background-fill)" stroke-width="4" paint-order="stroke">'
        f"{name}</text>"
    )


def dial_curve(dial: OpenDial, strength: float) -> str:
    """What each strength does to development prompts: two rates with their intervals, the marks, and the place of
    ``strength``."""
    (low, high), strengths = dial.ends, dial.setting.curve.strengths.tolist()

    def place(x: float, y: float) -> tuple[float, float]:
        return WIDTH * (x - low) / (high - low), CURVE_HEIGHT * (1 - y)

    def line(shares: list[float]) -> list[str]:
        return ["{:.1f},{:.1f}".format(*place(x, y)) for x, y in zip(strengths, shares, strict=True)]

    def upright(x: float, style: str, title: str) -> str:
        at = place(x, 0)[0]
        return f'<line x1="{at:.1f}" x2="{at:.1f}" y2="{CURVE_HEIGHT}" class="{style}"><title>{title}</title></line>'

    drawn = "".join(upright(x, "mark", texts.MARK.format(name=name, strength=x)) for name, x in dial.marks.items())
    for kind, rate, least, most in dial.shares():
        band = " ".join(line(least) + line(most)[::-1])
        drawn += f'<polygon points="{band}" fill="{_colour(kind)}" opacity="0.18"/>'
        drawn += f'<polyline points="{" ".join(line(rate))}" fill="none" stroke="{_colour(kind)}" stroke-width="2.5"/>'
    drawn += upright(strength, "now", f"{strength:.2f}")
    now = dial.rates(strength)
    drawn += "".join(f"{_dot(kind, *place(strength, share), 5)}/>" for kind, share in now.items())
    note = texts.CURVE_NOTE.format(strength=strength, now=now, stock=dial.rates(None))
    key = "".join(_key(kind, title) for kind, title in texts.CURVE_KEY.items())
    return box(
        f'<div class="key">{key}</div><svg viewBox="-6 -6 {WIDTH + 12} {CURVE_HEIGHT + 12}" role="img" '
        f'aria-label="{escape(texts.CURVE)}">{drawn}</svg><p>{note}</p>',
        texts.CURVE,
    )


def words(score: Score) -> str:
    """The prompt with its words marked by their weights, and the heaviest named."""
    largest = max((abs(word.weight) for word in score.words), default=0.0) or 1.0
    shown, end = "", 0
    for word in score.words:
        shown += escape(score.prompt[end : word.start])
        end, share = word.stop, abs(word.weight) / largest
        text = escape(word.text)
        if share >= FAINT:
            colour = "refuses" if word.weight > 0 else "answers"
            style = f"--mark: var(--{colour}); --strength: {10 + 50 * share:.0f}%"
            text = f'<mark style="{style}" title="{word.weight:+.1f}">{text}</mark>'
        shown += text
    shown += escape(score.prompt[end:])
    named = ", ".join(f"<b>{escape(word.text[:40])}</b> {word.weight:+.1f}" for word in score.heaviest)
    note = texts.WORDS_NOTE.format(largest=named)
    return box(f'<h2>{texts.WORDS}</h2><div class="words">{shown}</div><p>{note}</p>', texts.WORDS)


def pair_table(scores: dict[str, list[Score]]) -> str:
    """Verdicts of every model on both sides of a pair."""
    rows = ""
    for name, sides in scores.items():
        cells = "".join(f"<td>{score.verdict} ({score.refusal_probability:.2f})</td>" for score in sides)
        rows += f'<tr><th scope="row">{MODEL_TITLES[name]}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">{title}</th>' for title in ("model", *map(str.lower, texts.SIDE_PROMPTS)))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return box(f"{table}<p>{texts.PAIR_NOTE}</p>", texts.NO_TABLE_YET, "region")
