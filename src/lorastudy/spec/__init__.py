"""What is studied: the suite file, its settings, and the experiments they stand for."""
