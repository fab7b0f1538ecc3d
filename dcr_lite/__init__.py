"""dcr-lite: contrastive refinement before safety training, so that a chat model refuses what is toxic and answers what
only sounds so."""

import os
import sys

__version__ = "0.2.0"  # read from here when the package is built: a Space has its modules alone

# Read by torch when it first uses a card, so set before torch is imported: passes of many sizes leave holes in fixed
# blocks, and memory would run out with some of it free. The newer PYTORCH_ALLOC_CONF goes first. Windows lacks it.
if sys.platform != "win32":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
