"""From a trained run to a bundle, one directory that classifies images, and back to a predictor.

`write` makes a bundle and `read` reads one, `predictor` is what users call, `engine` is the protocol of everything that
runs the models, `fuse` folds BatchNorm, `graph` is an ensemble as one module, `forms` its files for other runtimes. Open
`predictor` first.
"""
