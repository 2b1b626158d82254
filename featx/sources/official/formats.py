"""The official files of CIFAR-10, CIFAR-100 and STL-10: what they are called, and their digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True)
class Format:
    """Official files of one data set."""

    name: str
    title: str
    folder: str
    splits: Mapping[str, tuple[str, ...]]
    names_file: str
    kind: str
    digests: Mapping[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """The files that must be there; STL-10 may lack the unlabelled images."""
        needed = (files for split, files in self.splits.items() if split != "unlabeled")
        return (*(file for files in needed for file in files), self.names_file)


_CIFAR10_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))

FORMATS = (
    Format(
        "cifar10",
        "CIFAR-10",
        "cifar-10-batches-py",
        {"train": _CIFAR10_TRAIN, "test": ("test_batch",)},
        "batches.meta",
        "pickle",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    Format(
        "cifar10",
        "CIFAR-10",
        "cifar-10-batches-bin",
        {"train": tuple(f"{file}.bin" for file in _CIFAR10_TRAIN), "test": ("test_batch.bin",)},
        "batches.meta.txt",
        "binary",
        {
            "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
            "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
            "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
            "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
            "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
            "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
        },
    ),
    Format(
        "cifar100",
        "CIFAR-100",
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        "pickle",
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    Format(
        "cifar100",
        "CIFAR-100",
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        "fine_label_names.txt",
        "binary",
        {
            "train.bin": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
            "test.bin": "8fb6623e830365ff53cf14adec797474f5478006",
        },
    ),
    Format(
        "stl10",
        "STL-10",
        "stl10_binary",
        {
            "train": ("train_X.bin", "train_y.bin"),
            "test": ("test_X.bin", "test_y.bin"),
            "unlabeled": ("unlabeled_X.bin",),
        },
        "class_names.txt",
        "stl",
        {
            "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
            "train_y.bin": "5a34089d4802c674881badbb80307741",
            "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
            "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
            "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
        },
    ),
)
"""The kinds of official files, as their authors publish them."""
