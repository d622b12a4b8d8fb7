"""timm models, their pretrained weights, fine-tuning strategies, and synchronized batch normalization.

In: a model config. Out: a network on the CPU, the parameters that each phase of training updates, and the tensors of a
checkpoint. Open `build.py` first; `finetuning.py` holds the strategies, `pretrained_weights.py` the sources of weights,
`features` linear heads on frozen features.
"""
