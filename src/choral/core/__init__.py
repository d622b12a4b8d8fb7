"""What every other package builds on: errors, atomic and checksummed files, worker processes, stop signals, ranks.

Imports nothing else of choral. Open `errors` first.
"""
