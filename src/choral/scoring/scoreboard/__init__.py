"""The scoreboard of a project: evaluated steps over time, and the number of uses of each test split.

In: evaluated runs (their ledgers). Out: runs/scoreboard/, from which `choral scores` builds tables with paired differences
and a figure. Open `board.py` first; `recording.py` appends to it, `rows.py` builds the tables, `test_set_uses.py` counts.
"""
