"""Labelled rows become records of a corpus: tables (rows in), tasks (rows to records), prepare (on the disk)."""
