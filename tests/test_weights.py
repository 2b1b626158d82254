from __future__ import annotations

import hashlib
import http.server
import pickle
import threading
from collections import OrderedDict

import pytest
import torch
from heard import Log
from safetensors.torch import save_file
from torch import nn

from featx.errors import UsageError, WeightsError
from featx.network_names import parse_random
from featx.progress import Reporter
from featx.weights import (
    StoredFile,
    WeightsFile,
    download,
    load_into,
    read_state_dict,
    state_sha256,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}, lambda s: {"model": s}])
def test_pth_and_safetensors_and_wrappings_give_the_same_weights(network, tmp_path, wrap):
    state = network.state_dict()
    torch.save(wrap(state), tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    prefixed = {f"module.{key}": value for key, value in state.items()}
    torch.save(prefixed, tmp_path / "parallel.pth")
    digests = {
        state_sha256(read_state_dict(tmp_path / name))
        for name in ("a.pth", "a.safetensors", "parallel.pth")
    }
    assert digests == {state_sha256(state)}


def test_the_digest_of_known_weights_never_changes():
    state = {"b": torch.arange(3, dtype=torch.float32), "a": torch.ones(2, 1, dtype=torch.int64)}
    expected = hashlib.sha256()
    expected.update(b'["a", "torch.int64", [2, 1]]' + (1).to_bytes(8, "little") * 2)
    expected.update(b'["b", "torch.float32", [3]]')
    expected.update(bytes.fromhex("000000000000803f00000040"))
    assert state_sha256(state) == expected.hexdigest()


def test_one_changed_value_changes_the_digest(network):
    state = network.state_dict()
    before = state_sha256(state)
    state["conv.weight"].view(-1)[7] += 1e-6
    assert state_sha256(state) != before


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    victim = tmp_path / "ran"
    torch.save({"x": Payload(victim)}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(victim), protocol=2))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(WeightsError, match="could run code"):
            read_state_dict(tmp_path / name)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04"])
def test_a_file_that_is_not_weights_gives_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_is_allowed(tmp_path):
    with pytest.raises(WeightsError, match=r"does not exist.*\.safetensors.*random"):
        read_state_dict(tmp_path / "none.pth")


def test_a_file_of_something_else_is_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="epoch are not tensors"):
        read_state_dict(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="without named tensors"):
        read_state_dict(tmp_path / "list.pth")


def test_weights_of_another_network_name_the_keys(network):
    state = dict(network.state_dict())
    with pytest.raises(WeightsError, match=r"2 missing \(norm\.weight, norm\.bias\)"):
        load_into(
            network, {k: v for k, v in state.items() if k[:6] not in ("norm.w", "norm.b")}, "f"
        )
    with pytest.raises(WeightsError, match=r"1 unexpected \(extra\)"):
        load_into(network, state | {"extra": torch.zeros(1)}, "f")
    with pytest.raises(WeightsError, match=r"conv.weight \(1,\) instead of \(4, 3, 3, 3\)"):
        load_into(network, state | {"conv.weight": torch.zeros(1)}, "f")


def test_counters_of_batch_normalisation_may_be_missing(network):
    state = {k: v + 1 for k, v in network.state_dict().items() if "num_batches" not in k}
    load_into(network, state, "f")
    assert torch.equal(network.conv.weight, state["conv.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_wrappings_are_taken_off_and_told(network, tmp_path, prefix, wrapper):
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    torch.save({wrapper: state}, tmp_path / "w.pth")
    log = Log()
    assert read_state_dict(tmp_path / "w.pth", reporter=log).keys() == network.state_dict().keys()
    (line,) = log.lines
    assert repr(wrapper) in line
    assert all(repr(f"{part}.") in line for part in prefix.rstrip(".").split("."))
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    log = Log()
    read_state_dict(tmp_path / "plain.pth", reporter=log)
    assert log.lines == []


def test_a_prefix_of_some_keys_is_part_of_their_names(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth").keys() == state.keys()


@pytest.mark.filterwarnings("ignore")
def test_programs_are_refused_and_the_error_says_what_to_do(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2))
    torch.jit.script(network).save(str(tmp_path / "script.pt"))
    exported = torch.export.export(network, (torch.zeros(1, 2),))
    torch.export.save(exported, tmp_path / "program.pt2")
    (tmp_path / "renamed.pth").write_bytes((tmp_path / "program.pt2").read_bytes())
    for name, kind in {
        "script.pt": "TorchScript",
        "program.pt2": "exported program",
        "renamed.pth": "exported program",
    }.items():
        with pytest.raises(WeightsError, match=rf"{kind}.*any code.*module:function") as caught:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_classifier_may_differ_where_that_is_allowed(network):
    state = {k: v + 1 for k, v in network.state_dict().items() if "num_batches" not in k}
    before = network.norm.weight.clone()
    assert load_into(network, state, "f", heads=[("norm",)]) == ()
    smaller = state | {"norm.weight": torch.zeros(2), "conv.weight": state["conv.weight"] + 1}
    assert load_into(network, smaller, "f", heads=[("norm",)]) == ("norm",)
    assert torch.equal(network.conv.weight, smaller["conv.weight"])
    assert torch.equal(network.norm.weight, before + 1)
    headless = {k: v for k, v in state.items() if k.startswith("conv")}
    assert load_into(network, headless, "f", heads=[("norm",)]) == ("norm",)
    replaced = headless | {"norm.1.weight": torch.zeros(9)}
    assert load_into(network, replaced, "f", heads=[("norm",)]) == ("norm",)
    with pytest.raises(WeightsError, match=r"1 of another shape \(conv.weight"):
        load_into(network, smaller | {"conv.weight": torch.zeros(1)}, "f", heads=[("norm",)])
    with pytest.raises(WeightsError, match=r"1 missing \(conv.bias\)"):
        load_into(network, {"conv.weight": state["conv.weight"]}, "f", heads=[("norm",)])


def test_a_folder_of_ones_own_comes_before_a_download(server, tmp_path, monkeypatch):
    _, url = server
    content = b"weights" * 10
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEATX_WEIGHTS", str(tmp_path / "mine"))
    file = WeightsFile(f"{url}/net.pth", len(content), digest[:8])
    with pytest.raises(WeightsError, match="FEATX_WEIGHTS names .*mine, which is no folder"):
        download(file)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/net.pth").write_bytes(content)
    assert download(file) == StoredFile(tmp_path / "mine/net.pth", digest)
    assert not (tmp_path / "home").exists()
    (tmp_path / "mine/net.pth").write_bytes(b"other")
    with pytest.raises(WeightsError, match="is damaged"):
        download(file)


def test_random_takes_a_seed():
    assert parse_random("random") == 0
    assert parse_random("random:7") == 7
    assert parse_random("IMAGENET1K_V1") is None
    with pytest.raises(UsageError, match="random:0"):
        parse_random("random:x")


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_download_is_checked_kept_and_found_again(server, tmp_path, monkeypatch, capsys):
    folder, url = server
    content = b"weights" * 1000
    digest = hashlib.sha256(content).hexdigest()
    (folder / "net.pth").write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = WeightsFile(f"{url}/net.pth", len(content), digest[:8])
    found = download(file, reporter=Reporter())
    assert found.path == tmp_path / "home/hub/checkpoints/net.pth"
    assert found.path.read_bytes() == content
    assert found.sha256 == digest
    (folder / "net.pth").unlink()
    assert download(file) == found
    found.path.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match="is damaged.*Delete it"):
        download(file)


def test_a_download_with_a_wrong_digest_leaves_nothing(server, tmp_path, monkeypatch):
    folder, url = server
    (folder / "net.pth").write_bytes(b"something else")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with pytest.raises(WeightsError, match=r"SHA-256 begins with .*, not 0{8} \(14 bytes\)"):
        download(WeightsFile(f"{url}/net.pth", 10, "0" * 8))
    assert list((tmp_path / "home").rglob("*.*")) == []


BODY = b"w" * 40_000
ANSWERS = {  # bytes, announced bytes, seconds of silence after them, digest, what is said
    "silence": (BODY, 60_000, 5, "0" * 8, "timed out"),
    "cut off": (BODY, 60_000, 0, "0" * 8, "40,000 of 60,000 bytes came"),
    "page": (b" <!DOCTYPE html>", None, 0, "", "a web page"),
    "page, cut off": (b"<html>", 60_000, 0, "", "6 of 60,000 bytes"),
    "another size": (BODY, None, 0, "", "40,000 bytes, not about 60,000"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_server_does_wrong_is_told_and_nothing_is_kept(name, tmp_path, monkeypatch):
    body, announced, silence, digest, words = ANSWERS[name]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(announced or len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
            is_over.wait(silence)

        def log_message(self, *args):
            pass

    is_over = threading.Event()
    monkeypatch.setattr("featx.weights.files._SECONDS_TO_ANSWER", 0.2)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}/net.pth"
        with pytest.raises(WeightsError, match=words) as caught:
            download(WeightsFile(url, 60_000, digest))
        is_over.set()
        httpd.shutdown()
    assert "--weights FILE" in str(caught.value)
    assert "invalid hash" not in str(caught.value)
    assert [path for path in (tmp_path / "home").rglob("*") if not path.is_dir()] == []


def test_a_login_page_that_was_kept_as_weights_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATX_WEIGHTS", str(tmp_path))
    (tmp_path / "net.pth").write_bytes(b"<html>Please log in</html>")
    with pytest.raises(WeightsError, match=r"is a web page \(26 bytes\). Delete it"):
        download(WeightsFile("http://127.0.0.1:9/net.pth", 60_000, ""))


def test_offline_the_error_names_file_size_url_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = WeightsFile("http://127.0.0.1:9/models/net-0a1b2c3d.pth", 5_000_000, "0a1b2c3d")
    with pytest.raises(WeightsError) as caught:
        download(file)
    text = str(caught.value)
    for part in ("net-0a1b2c3d.pth", "5.0 MB", file.url, str(tmp_path / "home"), "--weights FILE"):
        assert part in text
    assert "\n" not in text
