"""A dial for a finished run that has none."""

from pathlib import Path

import numpy as np
from small_runs import LAYER

from dcr_lite.data.rows import read_conversations, read_pairs
from dcr_lite.files import SHIPPED
from dcr_lite.measure.trade_off import TradeOff
from dcr_lite.method.dial import set_strength
from dcr_lite.method.dial_fitting import fit_dial
from dcr_lite.model.adapters import load_adapter, save_adapter
from dcr_lite.names import DCR
from dcr_lite.run.dial_setting import DialSetting
from dcr_lite.run.opening import knows_openings, load_base, model_settings_of

STRENGTHS = np.linspace(-2, 3, 11)


def give_dial(run: Path, strength: float) -> None:
    """Fit a dial, write it with an invented curve, and set it in the run's adapter."""
    model, _ = load_base(model_settings_of(run))
    knows_openings(model, run)
    load_adapter(model, DCR, run / "adapter")
    rows = read_conversations(SHIPPED / "instructions.jsonl")
    dial = fit_dial(model, DCR, LAYER, read_pairs(SHIPPED / "pairs.jsonl")[:40], rows[:20])
    (run / "dial").mkdir(exist_ok=True)
    dial.save(run / "dial" / "dial.safetensors")
    rates = 1 / (1 + np.exp(np.stack([2 * STRENGTHS - 2, 2 * STRENGTHS + 1], 1)))
    curve = TradeOff(STRENGTHS, rates, (rates - 0.05).clip(0), (rates + 0.05).clip(max=1))
    DialSetting(strength, "strength", None, True, 0.0, (0.5, 0.3), curve, 8, dial.gain, {}, {}).save(run / "dial")
    set_strength(model, DCR, dial, strength)
    save_adapter(model, DCR, run / "adapter", lambda folder: _keep(run, folder))


def _keep(run: Path, folder: Path) -> None:
    for file in (run / "adapter").iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
