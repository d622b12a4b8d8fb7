"""One self-contained HTML page: no network, light and dark, every text from data shown as text."""
