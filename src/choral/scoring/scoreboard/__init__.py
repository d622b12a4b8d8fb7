"""The scoreboard of a project: evaluated steps over time, and how often the test split was used. Open `board` first."""
