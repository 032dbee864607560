"""Anything that `datasets` loads: a folder from save_to_disk, a folder of data files, or a hub id."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miner.config import Data
from miner.errors import UserError
from miner.readers import Source, rows
from miner.readers.pairs import corpus_file, pairs


def read(data: Data) -> Source:
    return Source(passages=corpus_file(data), pairs=pairs(_rows(data), data.columns))


def _rows(data: Data) -> Iterator[rows.Row]:
    count = 0
    for count, values in enumerate(_load(data), 1):
        yield rows.Row(dict(values), f"{data.path}[{data.split}]:row {count}")
    if not count:
        raise UserError(f"{data.path}[{data.split}]: the data set holds no rows")


def _load(data: Data) -> Any:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(data.path)
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(data.path)
            return loaded[data.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        return datasets.load_dataset(data.path, data.subset, split=data.split, revision=data.revision)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"data.path {data.path}, split {data.split}: cannot load ({reason})") from None
