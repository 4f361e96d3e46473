"""Record how each round was made, and trace, audit and reproduce it: ledger, lineage, audit, reproduction."""
