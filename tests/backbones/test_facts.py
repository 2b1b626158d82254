"""What ``featx list backbones`` shows, without downloading and without values."""

from __future__ import annotations

import socket

import pytest
import torch
from torchvision import models

from featx.backbones import facts, list_layers, outline, torchvision_models
from featx.backbones.facts import default_shapes, list_facts, measure
from featx.cli import main
from featx.network_names import PACKAGED


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a list went to the network")

    monkeypatch.setattr(socket.socket, "connect", refused)


def computed(name):
    points, default = list_layers(name)
    return next(point.shape for point in points if point.name == default)


def test_every_network_is_listed_with_all_that_is_known():
    listed = {row.name: row for row in list_facts()}
    assert set(listed) >= {*torchvision_models.available(), "efficientnet_lite0"}
    assert set(default_shapes()) == set(torchvision_models.available())
    for row in listed.values():
        assert row.weights
        assert row.licence
        assert all([row.input_px, row.n_features, row.n_parameters, row.gmacs])
    assert listed["vgg16"].n_features == 25_088
    assert listed["inception_v3"].n_features == 131_072
    assert listed["resnet50"].others == ("IMAGENET1K_V2",)
    assert listed["vit_h_14"].licence == "CC-BY-NC-4.0"
    assert list(listed) == sorted(listed)


def test_patterns_are_parts_or_wildcards():
    assert [row.name for row in list_facts("resnet5*")] == ["resnet50"]
    assert {"resnet50", "wide_resnet50_2"} <= {row.name for row in list_facts("resnet5")}
    assert list_facts("nothing_like_it") == []


@pytest.mark.parametrize("name", ["alexnet", "densenet121", "regnet_x_400mf", "swin_t"])
def test_the_table_of_shapes_is_what_is_computed(name):
    assert default_shapes()[name] == computed(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_the_whole_table_of_shapes_is_what_is_computed(name):
    assert default_shapes()[name] == computed(name)


def test_what_is_measured_agrees_with_torchvisions_own_record():
    meta = models.ResNet50_Weights.IMAGENET1K_V1.meta
    n_features, n_parameters, gmacs = measure("resnet50")
    assert (n_features, n_parameters) == (100_352, meta["num_params"])
    assert gmacs == pytest.approx(meta["_ops"], abs=0.001)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_network_is_as_listed(name):
    pytest.importorskip("timm")
    (row,) = list_facts(name)
    n_features, n_parameters, gmacs = measure(name)
    assert row.input_px == outline(name, {}).preprocessing.crop_px
    assert (row.n_features, row.n_parameters) == (n_features, n_parameters)
    assert row.gmacs == pytest.approx(gmacs, abs=0.001)


def test_an_outline_has_no_values_and_leaves_no_hook():
    network = outline("regnet_y_128gf", {}).network
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert not torch.nn.Linear(2, 2).weight.is_meta


class TestTimm:
    @pytest.fixture(autouse=True)
    def _needs_timm(self):
        pytest.importorskip("timm")

    def test_one_row_an_architecture(self):
        rows = list_facts("timm")
        assert len(rows) > 1000
        assert all(row.name.startswith("timm/") and "." not in row.name for row in rows)
        assert all(row.n_features is None for row in rows)
        assert all(row.weights and row.input_px for row in rows)

    def test_a_few_are_measured(self):
        rows = {row.name: row for row in list_facts("timm/resnet18")}
        row = rows["timm/resnet18"]
        assert (row.weights, row.input_px, row.n_features) == ("a1_in1k", 224, 25_088)
        assert row.n_parameters == 11_689_512
        assert row.gmacs == pytest.approx(1.814, abs=0.01)
        assert row.licence == "apache-2.0"
        assert "tv_in1k" in row.others

    def test_one_row_a_tag_where_the_pattern_has_a_dot(self, monkeypatch):
        monkeypatch.setattr(facts, "MOST_MEASURED", 0)
        rows = {row.name: row for row in list_facts("timm/resnet18.*")}
        assert {"timm/resnet18.a1_in1k", "timm/resnet18.tv_in1k"} <= set(rows)
        assert rows["timm/resnet18.fb_ssl_yfcc100m_ft_in1k"].licence == "cc-by-nc-4.0"


def test_the_lists_of_the_command_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["list", "backbones", "squeezenet1_0"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    for name, value in {"features": "86,528", "GMACs": "0.82", "licence": "BSD-3-Clause"}.items():
        assert row[header.index(name) :].startswith(value)
    assert main(["list", "layers", "vgg16", "--input-size", "64"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "256 x 8 x 8" in lines["features.16"]
    assert "block3 block3_pool" in lines["features.16"]
    assert "default" in lines["features"]
    assert main(["list", "layers", "vgg61"]) == 2
    assert "did you mean vgg" in capsys.readouterr().err
