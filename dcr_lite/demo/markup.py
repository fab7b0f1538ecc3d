"""Scores as HTML and SVG: a verdict, two bars, a map, highlighted words. Every text from outside is escaped, and every
picture says in words what it shows."""

from html import escape

from dcr_lite.demo.scoring import Score
from dcr_lite.names import METHODS, NAMES
from dcr_lite.run.discernment import Discernment, Discernments

WIDTH, HEIGHT, EDGE = 420, 300, 20  # of the map, in its own units; the page scales it
TOP_WORDS = 3  # named in words below the highlighted prompt
FAINT = 0.08  # of the largest weight: what is below stays unmarked

# Gradio's own variables carry the page's colours, so that dark mode needs only the kinds in a lighter shade.
CSS = """
.dcr { --toxic: #c0392b; --seemingly: #2471a3; --refuses: #9a5b00; --answers: #1e7145; }
.dark .dcr { --toxic: #ff8a7a; --seemingly: #7cc4ff; --refuses: #ffc46b; --answers: #7ddca3; }
.dcr { color: var(--body-text-color); line-height: 1.45; }
.dcr p { margin: 0.4em 0 0; font-size: 0.86rem; opacity: 0.8; }
.dcr h2 { margin: 0 0 0.3em; font-size: 1rem; }
.dcr .verdict { border-left: 6px solid var(--mark); padding: 0.35em 0 0.35em 0.75em; }
.dcr .verdict strong { display: block; font-size: 1.5rem; line-height: 1.2; color: var(--mark); }
.dcr .small.verdict strong { font-size: 1.1rem; }
.dcr .small.verdict { min-height: 3.4em; }
.dcr .bar { display: grid; grid-template-columns: 8.2em 1fr 2.6em; gap: 0.6em; align-items: center; margin: 0.3em 0; }
.dcr .track { position: relative; height: 1.05em; border-radius: 4px; background: var(--border-color-primary); }
.dcr .fill { height: 100%; border-radius: 4px; background: var(--mark); }
.dcr .half { position: absolute; left: 50%; top: -3px; bottom: -3px; border-left: 2px dotted var(--body-text-color); }
.dcr .value { font-variant-numeric: tabular-nums; font-weight: 600; text-align: right; }
.dcr svg { width: 100%; height: auto; display: block; }
.dcr svg text { fill: var(--body-text-color); font-size: 13px; }
@media (max-width: 700px) { .dcr svg text { font-size: 16px; } }
.dcr .key { display: flex; flex-wrap: wrap; gap: 0.2em 1.1em; font-size: 0.86rem; }
.dcr .words { font-size: 1.08rem; line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; }
.dcr mark { color: inherit; border-radius: 4px; padding: 0.12em 0.2em;
  background: color-mix(in srgb, var(--mark) var(--strength), transparent); border-bottom: 2px solid var(--mark); }
.dcr table, .dcr tr, .dcr th, .dcr td { border: 0 !important; }
.dcr tr + tr, .dcr tbody { border-top: 1px solid var(--border-color-primary) !important; }
.dcr table { width: 100%; border-collapse: collapse; font-size: 0.95rem; }
.dcr th, .dcr td { text-align: left; padding: 0.4em 0.5em; }
"""


def _box(content: str, label: str = "", role: str = "group") -> str:
    return f'<div class="dcr" role="{role}" aria-label="{escape(label)}">{content}</div>'


def empty(sentence: str) -> str:
    """Where a picture will stand."""
    return _box(f"<p>{escape(sentence)}</p>", sentence)


def verdict_words(score: Score) -> str:
    """The decision in a word or two: what the judge found in the answer, or what the first token is likely to begin."""
    if score.refused is None:
        return "likely refuses …" if score.refusal_probability >= 0.5 else "likely answers …"
    return "refuses" if score.refused else "answers"


def verdict(score: Score, small: bool = False) -> str:
    """The refusal decision with its probability. ``small``: for a column."""
    refuses = score.refused if score.refused is not None else score.refusal_probability >= 0.5
    sign, colour = ("\N{MULTIPLICATION X}", "refuses") if refuses else ("\N{CHECK MARK}", "answers")
    words = f"{verdict_words(score)}"
    text = f"probability of opening with a refusal {score.refusal_probability:.2f}"
    return _box(
        f'<div class="{"small " if small else ""}verdict" style="--mark: var(--{colour})">'
        f'<strong><span aria-hidden="true">{sign}</span> {words[0].upper()}{words[1:]}</strong>{text}</div>',
        f"{METHODS[score.model]} {words}, {text}",
    )


def bars(score: Score, discernment: Discernment | None) -> str:
    """The two similarity scores, with the sentence that says what they mean."""
    if score.similarity is None or discernment is None:
        return empty("No similarity scores without a run: see the note above.")
    values = {"toxic": score.similarity.toxic, "seemingly_toxic": score.similarity.seemingly_toxic}
    rows = "".join(
        f'<div class="bar" style="--mark: var(--{kind.split("_")[0]})"><span>{NAMES[kind]}</span>'
        f'<div class="track"><div class="fill" style="width: {100 * value:.1f}%"></div><div class="half"></div></div>'
        f'<span class="value">{value:.2f}</span></div>'
        for kind, value in values.items()
    )
    label = ", ".join(f"similarity to {NAMES[kind]} prompts {value:.2f}" for kind, value in values.items())
    meaning = (
        "Of development prompts, half of each kind, whose states lie as close to the mean of a kind as this one, the "
        f"share that is of that kind; 0.5 (dotted) says nothing. AUROC on those prompts: {discernment.auroc:.2f}."
    )
    return _box(
        f'<div role="img" aria-label="{label}"><h2>Similarity to the two kinds</h2>{rows}</div><p>{meaning}</p>',
        "similarity scores",
    )


def _dot(kind: str, x: float, y: float, size: float) -> str:
    """A circle for toxic prompts, a square for the others: the kinds differ in shape, not by colour alone."""
    colour = f'fill="var(--{kind.split("_")[0]})"'
    if kind == "toxic":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {colour}'
    return f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}" {colour}'


def state_map(scores: list[Score], readings: Discernments | None) -> str:
    """Where the development prompts of both kinds lie at layer L, and these prompts among them; one model's scores."""
    if readings is None or scores[0].similarity is None:
        return empty("No map without a run: see the note above.")
    points = readings.models[scores[0].model].points.tolist()
    places = [score.similarity.place for score in scores if score.similarity]
    xs, ys = zip(*points, *places, strict=True)

    def across(value: float, values: tuple[float, ...], size: int) -> float:
        return EDGE + (value - min(values)) / (max(values) - min(values) or 1) * (size - 2 * EDGE)

    texts = [*readings.toxic, *readings.seemingly_toxic]
    kinds = ["toxic"] * len(readings.toxic) + ["seemingly_toxic"] * len(readings.seemingly_toxic)
    dots = "".join(
        f'{_dot(kind, across(x, xs, WIDTH), HEIGHT - across(y, ys, HEIGHT), 3.6)} opacity="0.55">'
        f"<title>{NAMES[kind]}: {escape(text)}</title></{'circle' if kind == 'toxic' else 'rect'}>"
        for kind, text, (x, y) in zip(kinds, texts, points, strict=True)
    )
    here = ""
    for number, (x, y) in enumerate(places):
        left, top = across(x, xs, WIDTH), HEIGHT - across(y, ys, HEIGHT)
        name = "this prompt" if len(places) == 1 else ("first", "second")[number]
        side, anchor = (-13, "end") if left > WIDTH / 2 else (13, "start")
        here += (
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="9" fill="none" stroke="var(--body-text-color)" '
            f'stroke-width="3"/><circle cx="{left:.1f}" cy="{top:.1f}" r="2.5" fill="var(--body-text-color)"/>'
            f'<text x="{left + side:.1f}" y="{min(HEIGHT - 4, max(12, top + 5)):.1f}" text-anchor="{anchor}" '
            'font-weight="700" stroke="var(--block-background-fill)" stroke-width="4" paint-order="stroke">'
            f"{name}</text>"
        )
    ends = (
        f'<text x="2" y="{HEIGHT - 3}">\N{LEFTWARDS ARROW} seemingly toxic</text>'
        f'<text x="{WIDTH - 2}" y="{HEIGHT - 3}" text-anchor="end">toxic \N{RIGHTWARDS ARROW}</text>'
    )
    told = "; ".join(
        f"{'this prompt' if len(places) == 1 else ('the first', 'the second')[i]} lies further along than "
        f"{sum(place[0] > p[0] for p in points) / len(points):.0%} of them"
        for i, place in enumerate(places)
    )
    label = f"Map of layer {readings.layer}: development prompts from seemingly toxic (left) to toxic (right); {told}"
    key = "".join(
        f'<span><svg viewBox="0 0 10 10" style="width: 0.8em; display: inline">{_dot(kind, 5, 5, 4.5)} /></svg> '
        f"{NAMES[kind]}</span>"
        for kind in ("seemingly_toxic", "toxic")
    )
    this = "this prompt" if len(places) == 1 else "these two"
    return _box(
        f'<div class="key">{key}<span><b>\N{FISHEYE}</b> {this}</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{dots}{here}{ends}</svg>'
        f"<p>States of layer {readings.layer} in {METHODS[scores[0].model]}. Left to right: from seemingly toxic to "
        "toxic; upwards: what else varies most. The dots are development prompts, of which none was trained on.</p>",
        label,
    )


def words(score: Score) -> str:
    """The prompt with the words that weigh on the decision marked, and the heaviest named."""
    if not score.words:
        return empty("The prompt is too long, or has too few words, to weigh them one by one.")
    largest = max(abs(word.weight) for word in score.words) or 1.0
    shown, end = "", 0
    for word in score.words:
        shown += escape(score.prompt[end : word.start])
        end, share = word.stop, abs(word.weight) / largest
        text = escape(word.text)
        if share < FAINT:
            shown += text
            continue
        colour = "refuses" if word.weight > 0 else "answers"
        shown += (
            f'<mark style="--mark: var(--{colour}); --strength: {10 + 50 * share:.0f}%" '
            f'title="{word.weight:+.1f}">{text}</mark>'
        )
    shown += escape(score.prompt[end:])
    top = sorted(score.words, key=lambda word: -abs(word.weight))[:TOP_WORDS]
    named = ", ".join(f"<b>{escape(word.text[:40])}</b> {word.weight:+.1f}" for word in top)
    return _box(
        f'<h2>Words that weigh on the decision</h2><div class="words">{shown}</div>'
        f"<p>Heaviest: {named}. By how much the log-odds of refusing fall (+, amber) "
        "or rise (−, green) when a word is left out.</p>",
        "words that weigh on the decision",
    )


def pair_table(scores: dict[str, tuple[Score, Score]]) -> str:
    """Verdicts of every model on both sides of a pair."""
    rows = ""
    for name, sides in scores.items():
        cells = "".join(f"<td>{verdict_words(score)} ({score.refusal_probability:.2f})</td>" for score in sides)
        rows += f'<tr><th scope="row">{METHODS[name]}</th>{cells}</tr>'
    head = '<tr><th scope="col">model</th><th scope="col">first prompt</th><th scope="col">second prompt</th></tr>'
    note = "<p>In brackets the probability of opening with a refusal.</p>"
    return _box(f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>{note}", "verdicts of all models", "region")
