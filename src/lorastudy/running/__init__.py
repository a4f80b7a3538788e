"""Carrying out a plan: phases of packs in workers, and the store that takes their results."""
