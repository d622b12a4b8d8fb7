"""Random changes to training images, with parameters a sample that depend on (seed, epoch, row) only.

parameters    what is done to which sample, as NumPy arrays
mixing        mixup and cutmix: which samples are mixed, in which shares
"""
