"""A product with 4-bit weights beside the product with the same weights written out, and its gradient."""

from typing import Any

import bitsandbytes
import torch
from torch import Tensor

from dcr_lite.check.finding import Finding, Task
from dcr_lite.run.opening import Machine

WIDTH, OUT, ROWS = 512, 768, 32
# NF4 keeps normally distributed weights to 9 to 10 per cent of their size (Dettmers et al., QLoRA, 2023).
ROUNDING = (0.05, 0.15)
EXACT = 0.02  # relative error of a product, as in machine.py


def look(task: Task) -> Finding:
    """Whether 4-bit products are right on the device of the run."""
    on: Machine | None = task.given_by("machine")
    if on is None:
        return Finding(["not tried: there is no device to try it on"])
    try:
        found = errors(on.device, on.precision)
    except Exception as error:  # whatever a kernel that does not fit this card raises
        return _judged(on, Finding([f"failed: {type(error).__name__}"]), f"fails ({error})")
    worst = max(found[name] for name in ("product", "single_row", "gradient"))
    used = "used by this run" if on.four_bit else "not used by this run"
    says = f"products within {worst:.2%} of those with the weights written out; {used}"
    finding = Finding([says], dict(found))
    if not ROUNDING[0] <= found["rounding"] <= ROUNDING[1]:
        return _judged(on, finding, f"does not give the weights back (off by {found['rounding']:.0%})")
    if not worst <= EXACT:
        return _judged(on, finding, f"computes wrong products (off by {worst:.0%})")
    return finding


def errors(device: str, precision: torch.dtype) -> dict[str, float]:
    """Relative errors: of the weights written out against the original ones (rounding), and against those written out
    of a product with many rows, with a single one (which has a kernel of its own), and of the inputs' gradient."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(OUT, WIDTH, generator=generator)
    linear = bitsandbytes.nn.Linear4bit(WIDTH, OUT, bias=False, compute_dtype=precision, quant_type="nf4")
    linear.weight = bitsandbytes.nn.Params4bit(weights.to(precision), requires_grad=False, quant_type="nf4")
    linear.to(device)
    linear.support_avx512bf16_for_cpu = False  # as the kit loads models, see model/loading.py
    state: Any = linear.weight.quant_state
    written_out = bitsandbytes.functional.dequantize_4bit(linear.weight.data, state).detach().cpu().double()
    inputs = torch.randn(ROWS, WIDTH, generator=generator).to(device, precision).requires_grad_()
    product = linear(inputs)
    along = torch.randn(ROWS, OUT, generator=generator).to(device, precision)
    product.backward(along)
    assert inputs.grad is not None
    with torch.no_grad():
        single = linear(inputs[:1])
    plain = inputs.detach().cpu().double()
    return {
        "rounding": _off(written_out, weights),
        "product": _off(product, plain @ written_out.T),
        "single_row": _off(single, plain[:1] @ written_out.T),
        "gradient": _off(inputs.grad, along.cpu().double() @ written_out),
    }


def _off(found: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((found.detach().cpu().double() - expected).norm() / expected.norm())


def _judged(on: Machine, finding: Finding, what: str) -> Finding:
    """With a problem where the run uses 4-bit weights, else with a note."""
    sentence = f"bitsandbytes {bitsandbytes.__version__} {what} in 4 bits on {on.device}."
    if on.four_bit:
        finding.problems.append(f"{sentence} Reinstall it for this driver and torch, or use --quantization none.")
    else:
        finding.notes.append(sentence)
    return finding
