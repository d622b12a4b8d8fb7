"""From a trained run to a bundle, one directory that classifies images, and back to a predictor.

`engine` says what all forms of a predictor have in common, `fuse` makes networks faster without another answer, `graph`
is an ensemble as one network, `forms` its files for other runtimes, `bundle` the folder, `predictor` what users call.
"""
