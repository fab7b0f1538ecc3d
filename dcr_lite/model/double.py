"""Double precision, where a device has it and where it has none."""

from torch import Tensor


def in_double(tensor: Tensor) -> Tensor:
    """The tensor in float64: on its device, or on the CPU where that has no float64, as the GPU of a Mac."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
