"""What judges predictions: predictors by name, metrics, slices, calibration, the scoreboard. No forward pass, no torch."""
