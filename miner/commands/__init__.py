"""Commands of the program that have a module of their own; `miner.cli` registers them."""
