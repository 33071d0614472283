"""The operators, one file for each family, with its paper; `evomerge.merging.table` lists them."""
