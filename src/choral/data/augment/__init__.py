"""Random changes to training images, with parameters a sample that depend on (seed, epoch, row) only.

parameters    what is done to which sample, as NumPy arrays
geometry      flips and quarter turns, exact; rotation to perspective as one homography and one resampling
policy        RandAugment and TrivialAugment
colour        brightness, contrast, saturation, hue and grey as one matrix
texture       blur, noise, erased rectangles
mixing        mixup and cutmix: which samples are mixed, in which shares

Each kind of change comes twice: for one image in NumPy and OpenCV, which the CPU path calls, and for a batch in torch,
which the GPU path calls. Tests hold that they agree.
"""
