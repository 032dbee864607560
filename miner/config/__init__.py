"""The job file: one frozen model, read from YAML; a module for each section."""

from miner.config.base import is_address, secret
from miner.config.data import Columns, CorpusColumns, Data, Firewall
from miner.config.encoder import Encoder
from miner.config.engine import Engine
from miner.config.export import Export
from miner.config.job import Job
from miner.config.llm import Batch, Budget, Endpoint, Generator, Judge, Price, Replica, Vllm
from miner.config.load import load
from miner.config.mining import Filters, Index, Mining, Retriever, Teacher

__all__ = [
    "Batch",
    "Budget",
    "Columns",
    "CorpusColumns",
    "Data",
    "Encoder",
    "Endpoint",
    "Engine",
    "Export",
    "Filters",
    "Firewall",
    "Generator",
    "Index",
    "Job",
    "Judge",
    "Mining",
    "Price",
    "Replica",
    "Retriever",
    "Teacher",
    "Vllm",
    "is_address",
    "load",
    "secret",
]
