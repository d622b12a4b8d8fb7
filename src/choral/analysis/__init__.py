"""What is wrong with a run, and with its data: errors, slices, labels, duplicates, health, weaknesses. No torch."""
