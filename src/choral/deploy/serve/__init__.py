"""A predictor behind HTTP: one process that reads uploads within limits, decodes them in threads and predicts in batches.

`limits` bounds memory and time, `uploads` parses requests, `service` turns their images into predictions (`batching` groups
images that wait at the same time), `app` defines the routes, `gate` and `connection` guard them, `pages` and `docs` render
HTML, and `server` runs it all until it is stopped. Open `app` first.
"""
