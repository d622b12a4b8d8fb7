"""From encoded bytes to batches on a device.

headers, decode               bytes to RGB pixels, by one stated rule for every kind of file
crop, resize                  pixels to the square that the network sees
cache                         a split decoded once, shared by everybody on the machine
targets                       what the network is to say of each sample
sample                        one sample, from its row in the index to its pixels
ring, crew, worker            slots that batches are built in, and the threads or processes that build them
bad_samples                   what happens with a sample that cannot be read
loader                        the host stage: orders to uint8 batches
augment, normalize, device    the device stage: uint8 batches to normalised, augmented float batches
streams                       all of it, put together from a config

Nothing is imported here: a decoding process that resizes without torch starts without it, in a tenth of the time.
"""
