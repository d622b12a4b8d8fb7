"""From a trained run to a bundle that classifies new images, and to an HTTP service around it.

`bundle` writes, verifies and runs bundles; `serve` puts one behind HTTP. Open `bundle/predictor` first.
"""
