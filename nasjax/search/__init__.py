"""What runs on top of a space: random search, and oracles, tables of the truth (docs/oracle.md)."""

from nasjax.search._table import TableKey
from nasjax.search.errors import OracleError, SearchError
from nasjax.search.oracle import Oracle
from nasjax.search.random_search import random_search

__all__ = ["Oracle", "OracleError", "SearchError", "TableKey", "random_search"]
