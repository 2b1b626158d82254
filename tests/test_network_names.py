"""Names read from the sources of the libraries are those that the libraries know."""

from __future__ import annotations

import re

import pytest
import timm
from torchvision import models

from featx.errors import UsageError, WeightsError
from featx.network_names import SCRATCH, check_network_name, check_weights_name, networks_of
from featx.networks import available_networks


def test_every_name_of_torchvision_is_found_in_its_source():
    assert list(networks_of("torchvision")) == sorted(models.list_models(module=models))


def test_every_name_of_timm_is_found_in_its_source():
    assert list(networks_of("timm")) == sorted(timm.list_models())


def test_the_names_of_networks_from_scratch_are_those_that_there_are():
    assert tuple(available_networks()) == SCRATCH


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_tag_of_torchvision_is_taken_and_no_other(name):
    for entry in models.get_model_weights(name):
        check_weights_name(name, entry.name)
    with pytest.raises(WeightsError, match=re.escape(f"choose from {entry_names(name)}, random")):
        check_weights_name(name, "NO_SUCH_TAG")


def entry_names(name):
    return ", ".join(entry.name for entry in models.get_model_weights(name))


def test_every_name_with_a_tag_of_timm_is_taken():
    for name in timm.list_pretrained():
        architecture, _, tag = name.partition(".")
        check_network_name(f"timm/{name}")
        check_weights_name(f"timm/{architecture}", tag or None)


def test_every_older_name_of_timm_is_left_to_timm():
    for name in timm.models.get_deprecated_models():
        check_network_name(f"timm/{name}")


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet5", "resnet50"),
        ("resnet18d", "timm/resnet18d"),
        ("timm/resnet5", "timm/resnet50"),
        ("timm/resnet5.a1_in1k", "timm/resnet50"),
        ("hf_hub:timm/resnet5", "timm/resnet50"),
        ("efficientnet_lite7", "efficientnet_lite0"),
    ],
)
def test_a_misspelt_name_has_near_ones(name, close):
    with pytest.raises(UsageError, match=f"did you mean .*{re.escape(close)}"):
        check_network_name(name)
