"""Random augmentation of training images. Its parameters per sample depend only on (seed, epoch, row).

In: the `augment` section of a config and index rows. Out: augmented images. Open `parameters` first.

parameters        the augmentation parameters of a batch, as NumPy arrays
geometry          exact flips and quarter turns; rotation to perspective as one homography and one resampling
rand_augment      RandAugment and TrivialAugment
colour            brightness, contrast, saturation, hue and grey as one matrix
texture           blur, noise, random erasing
mixing            mixup and cutmix: partners and shares
host_transforms   Albumentations transforms, in the decoding workers

Each augmentation exists twice: for one image, in NumPy and OpenCV, on the CPU path; for a batch, in torch, on the GPU
path. Tests check that both agree.
"""
