"""From a trained run to one folder that answers for an image, and back: what is deployed.

`engine` says what all forms of a predictor have in common, `fuse` makes networks faster without another answer, `graph`
is an ensemble as one network, `forms` its files for other runtimes, `bundle` the folder, `predictor` what users call.
"""
