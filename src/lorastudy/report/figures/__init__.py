"""The report's figures: data first (`data`), then drawn twice, for paper (`static`) and screen (`interactive`)."""
