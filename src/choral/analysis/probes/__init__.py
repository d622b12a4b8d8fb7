"""Images that are changed on purpose, family by family and strength by strength: how much worse are the answers?

families      what is done, in which strengths, and which augmentation would show it in training; needs no torch
plan          which samples are probed, and what the ledger of it will hold; needs no torch
perturb       the changes, as tensor operations
jpeg          the loss of a JPEG, as tensor operations
sketch        features of the networks, in a few numbers
probing       the pass over the data
"""
