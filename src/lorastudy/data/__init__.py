"""From files to token rows and batches: reading, the meaning of columns, the trained parts, and the order of rows."""
