"""What every room builds on: errors, atomic and checksummed files, worker processes, stop signals, the process group.

Imports nothing else of choral. Open `errors` first.
"""
