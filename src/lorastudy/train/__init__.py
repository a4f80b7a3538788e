"""The worker: loads, profiles, trains, evaluates and saves one pack after another, and records how each arm ended."""
