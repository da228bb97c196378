"""How fast each stage is, beside what the machine could do at best, measured in one run."""
