"""The subcommands of `miner`, a module each. They and cli.py are the only places that print."""
