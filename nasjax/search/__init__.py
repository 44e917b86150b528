"""What runs on top of a space: so far oracles, tables of the truth. See docs/oracle.md."""

from nasjax.search._table import TableKey
from nasjax.search.errors import OracleError
from nasjax.search.oracle import Oracle

__all__ = ["Oracle", "OracleError", "TableKey"]
