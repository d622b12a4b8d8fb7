"""Training: the loop, its optimizer and schedule, its checkpoints and its reports."""
