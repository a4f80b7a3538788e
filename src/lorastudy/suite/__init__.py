"""The subject of a study: the typed suite file, its experiments, and the question that they answer."""
