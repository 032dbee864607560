"""The stages: plain functions from tables, one adapter and a frozen config to a table. They never import each other."""
