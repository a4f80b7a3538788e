"""What both sides share: records, jobs, run folders, and files that are written whole or not at all."""
