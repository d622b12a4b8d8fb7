"""Features of a frozen network: computed once, kept on disk, and heads fitted to them."""
