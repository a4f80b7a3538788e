"""The formats that the control side and the worker share: records, jobs, run folders and sealed files."""
