"""The page of an analysis: one self-contained HTML file.

In: an `Analysis` and a function that reads stored images. Out: the text of the page. `report.py` (open it first) lists the
sections; `page_data.py` packs the numbers for the scripts (`*.js`), `thumbnails.py` the images, and `highlights.py` writes
the findings at the top. The frame and the shared style are in `choral.core.pages`.
"""
