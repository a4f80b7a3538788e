"""WHAT is studied: the typed suite file, the experiments that follow from it, and the questions that are asked of them."""
