"""`vqvdm demo`: from nothing to a page of generated videos."""
