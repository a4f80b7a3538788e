"""The device side: a frozen base model, many adapters on it, and the loop that trains them all at once."""
