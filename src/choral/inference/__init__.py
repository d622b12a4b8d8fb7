"""Models and shards to a prediction ledger: views (test-time augmentation), the distributed evaluation, the ledger.

This package imports no torch by itself, so that ledgers can be read, scored and combined on a machine without it.
"""

from choral.inference.ledger import Ledger, LedgerMeta, ledger_table, merge_parts, write_part
from choral.inference.views import expand

__all__ = ["Ledger", "LedgerMeta", "expand", "ledger_table", "merge_parts", "write_part"]
