"""Figures as self-contained SVG, written by hand: a run folder needs no plotting library to show what it found."""
