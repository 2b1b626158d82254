"""Where images come from: built-in sets, folders, tables, archives, all behind `Source`.

In: what was typed after ``--data``. Out: a `Source` for each split: paths, labels, class names, the
bytes of each row, digests. The way: `opening` recognises the form, a module or folder for each form
lists it, `layout` and `labels` read all forms by the same rules. The same photographs give the
same rows in every form. The room must not know networks, features or heads.
"""

from featx.sources.archives import open_archive, open_webdataset
from featx.sources.base import ArraySource, Source
from featx.sources.chosen import LAYOUT_FIELDS, LayoutChoice
from featx.sources.folder import FolderSource, open_folder
from featx.sources.hub import open_hub
from featx.sources.manifest import open_manifest
from featx.sources.memory import from_arrays
from featx.sources.official import open_official
from featx.sources.opening import FORMS, available_data, open_data
from featx.sources.places import default_data_dir
from featx.sources.select import ClassChoice

__all__ = [
    "FORMS",
    "LAYOUT_FIELDS",
    "ArraySource",
    "ClassChoice",
    "FolderSource",
    "LayoutChoice",
    "Source",
    "available_data",
    "default_data_dir",
    "from_arrays",
    "open_archive",
    "open_data",
    "open_folder",
    "open_hub",
    "open_manifest",
    "open_official",
    "open_webdataset",
]
