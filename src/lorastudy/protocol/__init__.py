"""What the control side and the worker share: records, jobs, run folders, and files that are whole or not there."""
