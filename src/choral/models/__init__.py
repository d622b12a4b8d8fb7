"""Backbones from timm, their pretrained weights, and batch statistics over ranks."""
