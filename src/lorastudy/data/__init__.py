"""From files to token rows and batches: what is read, what it means, which part is trained, in which order."""
