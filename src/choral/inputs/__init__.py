"""From encoded bytes to batches on a device.

decode, headers       bytes to RGB pixels, by one stated rule for every kind of file
crop, resize          pixels to the square that the network sees
cache                 a split decoded once, shared by everybody on the machine
sample                one sample, from its row in the index to its pixels
ring, crew, worker    slots that batches are built in, and the threads or processes that build them
bad_samples           what happens with a sample that cannot be read
loader                the host stage: orders to uint8 batches
augment, device       the device stage: uint8 batches to normalised, augmented float batches
streams               all of it, put together from a config

Only resize (antialiased), augment, device and streams need torch; nothing is imported here, so that a decoding process
starts without it where it can.
"""
