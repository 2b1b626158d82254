"""Commands are stopped for real, inside a training: nothing half done is kept, and they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Forked
from small_caches import CIFAR, write

from featx.cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

SENTENCE = "what was done is kept, go on with:  featx "

# Estimators that stay in their training until somebody stops them, and then never again.
ESTIMATORS = """
import time
from pathlib import Path
from sklearn.neighbors import NearestCentroid

class Patient(NearestCentroid):
    def fit(self, X, y):
        super().fit(X, y)
        if not Path("inside").exists():
            Path("inside").touch()
            self.wait()
        return self

    def wait(self):
        time.sleep(600)

class Swallows(Patient):
    def wait(self):
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            pass

class Translates(Patient):
    def wait(self):
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            raise ValueError("I was stopped")

class Deaf(Patient):
    def wait(self):
        while True:
            try:
                time.sleep(600)
            except BaseException:
                Path("swallowed").touch()
"""

# The libraries' own trainings, held in their first step.
HELD = """
import time
from pathlib import Path
import sklearn.neural_network._multilayer_perceptron as perceptron
import skorch

def held(step):
    def hold(*args, **options):
        Path("inside").touch()
        time.sleep(600)
        return step(*args, **options)
    return hold

network = perceptron.BaseMultilayerPerceptron
network._backprop = held(network._backprop)
skorch.NeuralNet.train_step = held(skorch.NeuralNet.train_step)
"""

RUN = "from featx.cli import main; raise SystemExit(main())"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cache").mkdir()
    for split, n, seed in (("train", 60, 0), ("test", 30, 1)):
        write(Path("cache"), "cifar10", split, CIFAR, n, seed)
    Path("patience.py").write_text(ESTIMATORS)
    return tmp_path


def wait_for(path: str, process: Forked) -> None:
    while not Path(path).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def end(process: Forked | subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "Traceback" not in told
    return process.returncode, out, told


def fits() -> list[str]:
    return sorted(path.name for path in Path("reports").glob("fits/*"))


def words(*clf: str) -> list[str]:
    return ["fit", "--clf", *clf, "--per-class", "5", "--repeats", "1", "--quiet"]


@pytest.mark.parametrize(
    ("clf", "number", "code"),
    [
        ("patience:Patient", signal.SIGINT, 130),
        ("patience:Swallows", signal.SIGINT, 130),
        ("patience:Swallows", signal.SIGTERM, 143),
        ("patience:Swallows", signal.SIGHUP, 129),
        ("patience:Translates", signal.SIGTERM, 143),
    ],
)
def test_a_stop_inside_a_fit_is_no_result_and_the_same_command_goes_on(
    desk, forks, clf, number, code
):
    process = forks.start(RUN, *words("svm", clf))
    wait_for("inside", process)
    process.send_signal(number)
    returned, out, told = end(process)
    assert returned == code
    assert told.count(SENTENCE) == 1
    assert out.strip() == ""
    (kept,) = fits()
    assert "svm" in kept
    assert main(words("svm", clf)) == 0
    assert len(fits()) == 2


@pytest.mark.parametrize("clf", ["mlp", "mlp-torch(device=cpu)"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_that_the_library_swallows_is_no_result(desk, forks, clf, number, code):
    process = forks.start(HELD + RUN, *words(clf))
    wait_for("inside", process)
    process.send_signal(number)
    returned, _, told = end(process)
    assert returned == code
    assert told.count(SENTENCE) == 1
    assert fits() == []
    assert not Path("reports/results.csv").exists()


def test_fits_side_by_side_are_stopped_too(desk, forks):
    process = forks.start(RUN, *words("patience:Swallows", "patience:Patient"), "--n-jobs", "2")
    wait_for("inside", process)
    process.send_signal(signal.SIGINT)
    returned, _, told = end(process)
    assert (returned, told.count(SENTENCE)) == (130, 1)


def test_a_stop_that_is_asked_again_ends_what_does_not_listen(desk, forks):
    process = forks.start(RUN, *words("patience:Deaf"))
    wait_for("inside", process)
    process.send_signal(signal.SIGINT)
    wait_for("swallowed", process)
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    returned, _, told = end(process)
    assert (returned, told.count(SENTENCE)) == (143, 1)
    assert fits() == []


def test_one_stop_that_is_sent_twice_is_one(desk, forks):
    process = forks.start(RUN, *words("patience:Swallows"), is_leader=True)
    wait_for("inside", process)
    # As timeout(1) does: to the process, then to its group.
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    returned, _, told = end(process)
    assert (returned, told.count(SENTENCE)) == (143, 1)


def test_signals_that_were_ignored_stay_ignored(desk, forks):
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = forks.start(ignore + RUN, *words("patience:Patient"))
    wait_for("inside", process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130


@pytest.mark.parametrize("action", [["rm", "cifar10-train-32-60.h5"], ["gc", "--older-than", "0"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_at_a_question_is_no_answer(desk, action, number, code):
    left = Path("cache/cifar10-test-32-60.h5.lock")
    left.touch()
    os.utime(left, (0, 0))
    before = sorted(Path("cache").iterdir())
    # A shell starts what runs in the background with Ctrl-C ignored, which is inherited.
    command = ["env", "--default-signal=INT", sys.executable, "-c", RUN, "cache", *action]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, text=True, **pipes)
    assert process.stdout is not None
    while "?" not in (said := process.stdout.read(1)):
        assert said, process.communicate()
    process.send_signal(number)
    returned, _, told = end(process)
    assert (returned, told.count(SENTENCE)) == (code, 1)
    assert sorted(Path("cache").iterdir()) == before


API = """
import sys
from pathlib import Path
from featx.catalog import open_complete
from featx.evaluate import ResultsFolder, Settings, evaluate, pair_caches
from featx.stops import _raised
pairs, _ = pair_caches(open_complete("cache")[0])
results = ResultsFolder("reports")
mine = ("patience:Swallows",)
settings = Settings(heads=mine, per_class=(5,), repeats=1, allow_code=mine)
try:
    evaluate(pairs[0], settings, sink=lambda result, fit: results.add(result))
except BaseException as error:
    print(type(error).__name__, len(_raised))
evaluate(pairs[0], settings, sink=lambda result, fit: results.add(result))
"""


def test_a_stop_in_a_script_is_raised_there_whatever_its_handler_raises(desk, forks):
    for handler, raised in (("", "KeyboardInterrupt"), ("sys.exit(3)", "SystemExit")):
        own = f"import signal; signal.signal(signal.SIGINT, lambda *_: {handler})\n"
        process = forks.start(f"import sys\n{own if handler else ''}{API}")
        wait_for("inside", process)
        assert fits() == []
        process.send_signal(signal.SIGINT)
        returned, out, _ = end(process)
        assert (returned, out.split()) == (0, [raised, "0"])
        assert len(fits()) == 1
        for path in (*Path("reports/fits").iterdir(), Path("inside")):
            path.unlink()
