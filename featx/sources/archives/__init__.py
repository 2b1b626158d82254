"""Images in zip and tar archives, read in place; WebDataset shards are tar archives too."""

from featx.sources.archives.archive import (
    ARCHIVE_ENDINGS,
    is_archive,
    open_archive,
    open_unlabelled,
)
from featx.sources.archives.streamed import open_pattern, open_streamed
from featx.sources.archives.webdataset import is_pattern, is_webdataset, open_webdataset

__all__ = [
    "ARCHIVE_ENDINGS",
    "is_archive",
    "is_pattern",
    "is_webdataset",
    "open_archive",
    "open_pattern",
    "open_streamed",
    "open_unlabelled",
    "open_webdataset",
]
