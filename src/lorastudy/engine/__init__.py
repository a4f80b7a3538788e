"""The device side: a frozen base model, many adapters on it, and the loop that trains them all at once."""

import logging

# It logs about optional kernels while it is imported, and about casts in every 8-bit layer. Whoever imports it
# first (peft does, too) comes through here before.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
