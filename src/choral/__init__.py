"""choral: many voices, one answer. Fine-tune pretrained image models, let them vote, know how sure to be."""

__version__ = "0.1.0"
