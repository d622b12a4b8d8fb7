"""A predictor behind HTTP: one process that reads uploads within limits, decodes them in threads and asks in batches.

`limits` says how much of everything there may be, `uploads` reads requests, `service` takes their images from bytes to
answers (`batching` gathers those that wait at the same time), `app` has the addresses, `gate` and `connection` guard them,
`pages` and `docs` are what people see, `server` runs it all until it is told to stop.
"""
