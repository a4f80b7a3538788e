"""The life of one pack in a worker: loaded, profiled, trained, evaluated, saved, and how each arm ended."""
