"""Scores as HTML and SVG."""

import dataclasses

import pytest

from dcr_lite.demo import markup
from dcr_lite.demo.score import Score
from dcr_lite.demo.scoring import OpenRun
from dcr_lite.measure.kinds import REFUSING, Kind

EVIL = "<script>x</script> \"'<img src=x onerror=y> &lt; ${z}"


def test_no_text_from_outside_becomes_markup(opened: OpenRun) -> None:
    """Prompts and the map's texts are escaped in every picture, and every picture is described in words."""
    assert opened.discernments is not None
    assert opened.dial is not None
    score = opened.score("dcr", EVIL)
    evil_texts = [EVIL] * len(opened.discernments.toxic)
    readings = dataclasses.replace(opened.discernments, toxic=evil_texts, seemingly_toxic=evil_texts)
    pictures = [
        markup.verdict(score), markup.bars(score, readings.models["dcr"]), markup.state_map([score], readings),
        markup.words(score), markup.pair_table({"dcr": [score, score]}), markup.empty(EVIL),
        markup.dial_curve(opened.dial, 0.5),
    ]  # fmt: skip
    for picture in pictures:
        assert "<script" not in picture
        assert "<img" not in picture
        assert 'aria-label="' in picture
    assert "&lt;script&gt;" in markup.words(score)
    assert f"opening with a refusal {score.refusal_probability:.2f}" in markup.verdict(score)


def test_the_map_shows_every_point_and_the_prompts(opened: OpenRun) -> None:
    """One shape for each development prompt, of its kind, and a ring for each prompt at hand."""
    assert opened.discernments is not None
    scores = [opened.score("dcr", prompt, words=False) for prompt in ("Can I burn a man?", "Hello")]
    drawn = markup.state_map(scores, opened.discernments)
    assert drawn.count("<title>toxic:") == drawn.count("<title>seemingly toxic:") == len(opened.discernments.toxic)
    assert drawn.count('r="9"') == 2


def test_the_curve_shows_where_the_dial_stands(opened: OpenRun) -> None:
    """Both shares at the strength in words and as a shape on its line, above it; a title for each mark."""
    assert opened.dial is not None
    for strength, says in (
        (-2, "refuses 1.00 of toxic and answers 0.05"),
        (1, "refuses 0.50 of toxic and answers 0.95"),
    ):
        drawn = markup.dial_curve(opened.dial, strength)
        assert says in drawn
        assert "stock model 0.50 and 0.70" in drawn
        across = markup.WIDTH * (strength + 2) / 5
        assert (
            f'<circle cx="{across:.1f}" cy="{markup.CURVE_HEIGHT * (1 - opened.dial.rates(strength)["toxic"]):.1f}"'
            in drawn
        )
        for name in opened.dial.marks:
            assert f"<title>{name}: " in drawn


def test_a_verdict_is_likely_until_the_judge_s_is_final() -> None:
    """Before the verdict is final the probability decides; afterwards the judge, whatever the probability."""
    assert "Likely answers" in markup.verdict(Score("dcr", "a", -3.0))
    assert "Likely refuses" in markup.verdict(Score("dcr", "a", 3.0))
    assert "Refuses" in markup.verdict(Score("dcr", "a", -3.0, refused=True))
    known: list[tuple[Kind, str]] = [
        ("refusal", "Refuses<"),
        ("partial", "Refuses in part<"),
        ("evasion", "Answers, but evades<"),
    ]
    for kind, says in known:
        assert says in markup.verdict(Score("dcr", "a", -3.0, refused=kind in REFUSING, kind=kind))
    assert Score("dcr", "a", -1e6).refusal_probability == pytest.approx(0, abs=1e-12)
    assert Score("dcr", "a", 0.0).refusal_probability == 0.5
