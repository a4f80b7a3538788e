"""The plan of a study, made before anything runs from the suite, the store and the machine; see `study_plan`."""
