"""What judges predictions: predictors by name, cards of metrics, slices. Reads ledgers; no forward pass, no torch."""
