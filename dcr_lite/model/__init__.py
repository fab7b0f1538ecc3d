"""Causal language models: loading, adapters, chat templates, hidden states, generation, and the memory they need.

May import: data.
"""

import logging

# While it is imported (by peft) it warns of a faster kernel that could not be downloaded and is never called.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
