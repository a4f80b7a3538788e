"""The device side: a frozen base model, many adapters on it, and the loop that trains them all at once."""

import logging

# bitsandbytes logs about optional kernels during its import, and about casts in every 8-bit layer. Every module that
# imports it (peft does too) is imported through this package, so this line runs first.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
