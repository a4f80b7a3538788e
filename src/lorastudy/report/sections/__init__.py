"""The sections of a report: each turns one study's analysis into blocks."""
