"""Every verdict, finding and cost of a study, or of imported results."""
