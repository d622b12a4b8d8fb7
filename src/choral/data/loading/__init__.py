"""From the encoded bytes of samples to batches on a device.

In: a packed split, a config, and which rows make which batch. Out: normalized, augmented float batches. Open
`input_pipeline` first; the modules below are listed in the order in which it uses them, down to the bytes.

input_pipeline, split, rank_place      the batches of a rank, from a config and an opened split
training_plan                          which samples make each training batch
resampling, boosting_weights           the samples and sample weights of a fold, a bag or a boosting round
targets, label_probabilities           labels, regression targets, soft targets
device_loader, normalize_cpu/_device   the device stage: uint8 batches to normalized, augmented float batches
host_stage, host_loader                the host stage: batch requests to uint8 batches
slot_ring, worker_pool/_process        the slots that batches are built in, and the threads or processes that fill them
bad_samples                            samples that cannot be read: fail, or skip and list them
sample_pipeline, input_spec            one sample, from its index row to the pixels that a model expects
decoded_cache                          a split decoded once, shared by all processes of a machine
crop, resize, decode, image_headers    bytes to RGB pixels, by one rule for every image format
contact_sheet, progress                a preview of the augmented samples; a progress bar

Nothing is imported here: a decoding process that resizes without torch starts without torch, in a tenth of the time.
"""
