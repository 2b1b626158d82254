"""Too little memory, played by stand-ins: the batch halves and the run goes on, or a sentence."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from featx.backbones import open_backbone
from featx.backbones.base import Backbone, BackboneGroup
from featx.backbones.taps import Repeated
from featx.engines import LocalEngine, SeveralDevices, several
from featx.engines import local as memory
from featx.engines.runtimes import eager
from featx.engines.runtimes.base import Whole
from featx.engines.runtimes.host import HostCopies
from featx.errors import BackboneError
from featx.memory import is_out_of_memory
from featx.preprocess import Preprocessing
from featx.sources import ArraySource
from featx.weights import Weights

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# What torch 2.8 to 2.14 and the libraries below it say.
FORMS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA ran out of memory outside PyTorch's allocator."),
    RuntimeError("cuda runtime error (2) : out of memory at THCCachingHostAllocator.cpp:280"),
    RuntimeError("cudaErrorMemoryAllocation in cudaHostAlloc"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("[cudnn_frontend] Error: No valid execution plans built."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed ..."
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes."),
    MemoryError("Unable to allocate 2.00 GiB for an array"),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x128 and 3x3)"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("Expected all tensors to be on the same device"),
    ValueError("out of memory"),
]
N_IMAGES, BATCH = 22, 8


class Net(nn.Module):
    """Convolution, batch normalisation and pooling; the memory holds only so many images."""

    def __init__(self, most=1000, error=FORMS[0]):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convolution, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.2, generator=generator)
        self.most, self.error, self.seen = most, error, []
        self.eval()

    def forward(self, images):
        if not torch.compiler.is_compiling():
            if len(images) > self.most:
                raise self.error
            self.seen.append(len(images))
        return self.norm(self.convolution(images)).mean((2, 3))


def backbone_of(network):
    preprocessing = Preprocessing(16, 16, "bilinear", (0.5,) * 3, (0.25,) * 3)
    weights = Weights("test", "0" * 64)
    return Backbone("net", "mean", True, "none", network, weights, preprocessing, (8,))


@pytest.fixture(scope="module")
def source():
    return ArraySource(
        name="noise",
        split="all",
        class_names=("a",),
        labels=np.zeros(N_IMAGES, np.int64),
        paths=tuple(map(str, range(N_IMAGES))),
        rows=np.arange(N_IMAGES),
        pixels=np.random.default_rng(0).integers(0, 256, (N_IMAGES, 12, 12, 3), np.uint8),
    )


@pytest.fixture(scope="module")
def wanted(source):
    return rows(LocalEngine(CPU, "fp32", BATCH, 0), Net(), source)


def rows(engine, network, source):
    batches = range(-(-len(source) // engine.batch_size))
    parts = list(engine.run(backbone_of(network), source, batches))
    assert [part.start for part in parts] == [batch * engine.batch_size for batch in batches]
    return np.concatenate([part.features for part in parts])


def assert_close(found, wanted):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("error", FORMS, ids=str)
def test_every_form_halves_the_batch_and_the_run_goes_on(error, source, wanted):
    said, network = [], Net(3, error)
    assert_close(rows(LocalEngine(CPU, "fp32", BATCH, 0, said.append), network, source), wanted)
    assert said == [f"cpu has too little memory: {n} images at once from now on" for n in (4, 2)]
    assert max(network.seen) == 2


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_every_other_error_is_raised_as_it_is(error, source):
    said = []
    with pytest.raises(type(error)) as caught:
        rows(LocalEngine(CPU, "fp32", BATCH, 0, said.append), Net(3, error), source)
    assert str(caught.value) == str(error)
    assert said == []
    assert not is_out_of_memory(error)


def few_at_once(function, most, error):
    """Let a step of a batch fail that has more images than fit."""

    def limited(*args, **options):
        n = next(len(arg) for arg in args if isinstance(arg, torch.Tensor))
        if n > most:
            raise error
        return function(*args, **options)

    return limited


@pytest.mark.parametrize("error", [FORMS[0], FORMS[6], FORMS[14]], ids=str)
@pytest.mark.parametrize("step", ["bring", "resize", "normalise", "forward", "fetch"])
def test_every_step_of_a_batch_may_lack_memory(step, error, source, wanted, monkeypatch):
    def limit(owner, name):
        monkeypatch.setattr(owner, name, few_at_once(getattr(owner, name), 3, error))

    if step == "bring":
        limit(HostCopies, "bring")
    if step == "normalise":
        limit(Preprocessing, "normalise")
    if step == "resize":
        find = Preprocessing.find_resize
        monkeypatch.setattr(
            Preprocessing, "find_resize", lambda *args: few_at_once(find(*args), 3, error)
        )
    if step == "fetch":
        fetch = HostCopies.fetch

        def limited(self, features):
            if len(features[0]) > 3:
                raise error
            return fetch(self, features)

        monkeypatch.setattr(HostCopies, "fetch", limited)
    said = []
    engine = LocalEngine(CPU, "fp32", BATCH, 0, said.append, resize_on_device=True)
    network = Net(3, error) if step == "forward" else Net()
    assert_close(rows(engine, network, source), wanted)
    assert said[-1] == "cpu has too little memory: 2 images at once from now on"
    assert len(said) == 2


def test_rows_of_batches_under_way_stay_in_order(source, wanted):
    class Fuller(Net):
        """The memory fills up behind the second batch."""

        def forward(self, images):
            self.most = 1000 if len(self.seen) < 3 else 3
            return super().forward(images)

    network, said = Fuller(), []
    engine = LocalEngine(CPU, "fp32", BATCH, 0, said.append)
    engine.open(BackboneGroup.of(backbone_of(network))).n_under_way = 2
    assert_close(rows(engine, network, source), wanted)
    assert len(said) == 2


@pytest.mark.parametrize("error", FORMS, ids=str)
def test_where_not_one_image_fits_a_sentence_says_so(error, source):
    with pytest.raises(BackboneError) as caught:
        rows(LocalEngine(CPU, "fp32", BATCH, 0, str), Net(0, error), source)
    text = str(caught.value)
    assert "net does not fit into the memory of cpu, not even with one image at once" in text
    assert str(error).splitlines()[0] in text
    assert "\n" not in text


@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_a_network_that_does_not_fit_itself_is_told(runtime, source):
    class Large(Net):
        def _apply(self, *args, **options):
            raise FORMS[0]

    engine = LocalEngine(CPU, "fp32", BATCH, 0, runtime=runtime)
    with pytest.raises(BackboneError, match="net does not fit into the memory of cpu: choose a"):
        rows(engine, Large(), source)


@pytest.mark.parametrize(
    ("change", "precision"), [("fold_batch_norms", "fp32"), ("with_low_weights", "bf16")]
)
def test_a_copy_that_does_not_fit_is_done_without(change, precision, source, monkeypatch):
    plain = rows(LocalEngine(CPU, precision, BATCH, 0), Net(), source)

    def fail(*_, **__):
        raise FORMS[9]

    monkeypatch.setattr(eager, change, fail)
    found = rows(LocalEngine(CPU, precision, BATCH, 0), Net(), source)
    assert np.abs(found - plain).max() <= 1e-5 * np.abs(plain).max()


def test_the_trial_of_folding_may_lack_memory(source, wanted):
    said = []
    engine = LocalEngine(CPU, "fp32", BATCH, 0, said.append)
    assert_close(rows(engine, Net(1, FORMS[7]), source), wanted)
    assert said[-1] == "cpu has too little memory: 1 images at once from now on"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that takes some images at once, 100 bytes each beside 500 for every pass."""

    def has(most, free):
        def peak(group, device, precision, n):
            if n > most:
                raise FORMS[7]
            return 500 + 100 * n

        monkeypatch.setattr(memory, "_peak_on_gpu", peak)
        monkeypatch.setattr(memory, "free_cached", lambda device: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)

    return has


@pytest.mark.parametrize(
    ("most", "free", "n"),
    [
        (1000, 1 << 30, 256),
        (1000, 2 * (500 + 64 * 100), 64),
        (1000, 2 * (500 + 64 * 100) - 2, 32),  # what every pass takes is counted, and once
        (1000, 10, 1),
        (7, 1 << 30, 4),
        (7, 2 * 3 * (900 // 4), 2),
        (3, 1 << 30, 2),
        (0, 1 << 30, 2),  # one or none: seen in the run
    ],
)
def test_the_trial_of_the_batch_size_may_lack_memory(gpu, most, free, n):
    gpu(most, free)
    group = BackboneGroup.of(backbone_of(Net()))
    said = []
    assert LocalEngine(GPU, "fp32", tell=said.append).fitted_to(group).batch_size == n
    assert len(said) == (n < 128)
    if free > 1000 and most >= 8:
        assert memory.images_that_fit(group, GPU, "fp32", 256, max_memory=900) == 4


def test_the_trial_of_the_batch_size_passes_other_errors_on(gpu, monkeypatch):
    gpu(1000, 1 << 30)

    def fail(*_):
        raise OTHERS[0]

    monkeypatch.setattr(memory, "_peak_on_gpu", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        LocalEngine(GPU).fitted_to(BackboneGroup.of(backbone_of(Net())))


def test_a_network_too_large_for_a_gpu_is_told_before_the_trial(gpu, monkeypatch):
    gpu(1000, 1 << 30)

    def fail(*_, **__):
        raise FORMS[0]

    monkeypatch.setattr(nn.Module, "to", fail)
    with pytest.raises(BackboneError, match="does not fit into the memory of cuda:0: choose"):
        LocalEngine(GPU).fitted_to(BackboneGroup.of(backbone_of(Net())))


def limited_program(runtime, n_good, error, network):
    """Let a compiled program fail behind some good batches, and the memory stay small."""
    group = BackboneGroup.of(backbone_of(network))
    program, seen = Whole(group, torch.float32), []

    def run(pixels):
        seen.append(len(pixels))
        if len(seen) > n_good:
            network.most = 3
            raise error
        return program(pixels)

    runtime._program = run
    return seen


@pytest.mark.parametrize("n_good", [0, 1])
def test_a_compiled_program_without_memory_gives_way_to_torch(n_good, source, wanted):
    said, network = [], Net()
    engine = LocalEngine(CPU, "fp32", BATCH, 0, said.append, runtime="compile")
    runtime = engine.open(BackboneGroup.of(backbone_of(network)))
    # While it compiles, torch wraps what happens.
    wrapped = torch._dynamo.exc.TorchDynamoException(f"backend='inductor' raised:\n{FORMS[0]}")
    seen = limited_program(runtime, n_good, FORMS[0] if n_good else wrapped, network)
    assert_close(rows(engine, network, source), wanted)
    assert seen == [BATCH] * (n_good + 1)
    assert said == [
        "cpu has too little memory for the compiled program of net: computed by PyTorch as it is "
        "from now on",
        "cpu has too little memory: 4 images at once from now on",
        "cpu has too little memory: 2 images at once from now on",
    ]


def test_a_choice_of_the_runtime_sees_that_the_program_has_no_memory():
    engine = LocalEngine(CPU, "fp32", BATCH, 0, str, runtime="compile")
    network = Net()
    group = BackboneGroup.of(backbone_of(network))
    limited_program(engine.open(group), 0, FORMS[13], network)
    with pytest.raises(BackboneError, match="net takes too much memory with compile"):
        engine.warm_up(group, "float32")


@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_a_bare_loop_of_too_large_a_batch_is_told(runtime):
    engine = LocalEngine(CPU, "fp32", BATCH, 0, runtime=runtime)
    network = Net(3)
    group = BackboneGroup.of(backbone_of(network))
    side = group.preprocessing.crop_px
    if runtime == "compile":
        limited_program(engine.open(group), 0, FORMS[0], network)
    with pytest.raises(BackboneError, match="with 8 images at once: choose a smaller --batch-size"):
        engine.open(group).bare(torch.zeros((BATCH, side, side, 3), dtype=torch.uint8))()


def test_each_device_halves_for_itself(source, wanted):
    said = []
    engines = tuple(LocalEngine(CPU, "fp32", BATCH, 0, said.append) for _ in range(2))
    assert_close(rows(SeveralDevices(engines), Net(3), source), wanted)
    assert sorted(said) == sorted(
        f"cpu has too little memory: {n} images at once from now on" for n in (4, 2) * 2
    )


def test_a_network_is_copied_once_for_each_device(source, wanted, monkeypatch):
    copied, real = [], several.copy.deepcopy
    monkeypatch.setattr(
        several.copy, "deepcopy", lambda what, *memo: copied.append(what) or real(what, *memo)
    )
    engine = SeveralDevices(tuple(LocalEngine(CPU, "fp32", BATCH, 0) for _ in range(2)))
    backbone = backbone_of(Net())
    for _ in range(3):
        parts = list(engine.run(backbone, source, range(3)))
        assert_close(np.concatenate([part.features for part in parts]), wanted)
    assert len([what for what in copied if isinstance(what, Repeated)]) == 4  # to fold, too


def test_a_copy_of_a_network_that_does_not_fit_is_told(source):
    class Large(Net):
        def __deepcopy__(self, memo):
            raise FORMS[0]

    engine = SeveralDevices(tuple(LocalEngine(CPU, "fp32", BATCH, 0) for _ in range(2)))
    with pytest.raises(BackboneError, match="net does not fit into the memory of cpu"):
        rows(engine, Large(), source)


def test_nothing_of_a_batch_that_failed_is_kept(source):
    """What an error's frames hold would be missing when the half is tried."""

    class Counts(Net):
        def forward(self, images):
            alive.extend(kept for kept in given if kept() is not None)
            given.append(weakref.ref(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    given, alive, network = [], [], Counts()
    network.norm = nn.Identity()  # nothing is folded, by another pass
    rows(LocalEngine(CPU, "fp32", BATCH, 0, str), network, source)
    assert len(given) > 10
    assert alive == []


@pytest.fixture
def little_memory():
    """A GPU of which this process may take 400 MB more than it has."""
    gpu = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    allowed = (torch.cuda.memory_reserved(gpu) + (400 << 20)) / total
    torch.cuda.set_per_process_memory_fraction(allowed, gpu)
    yield gpu
    torch.cuda.set_per_process_memory_fraction(1.0, gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_a_gpu_with_little_memory_gives_all_rows(runtime, little_memory):
    n = 150
    source = ArraySource(
        name="noise",
        split="all",
        class_names=("a",),
        labels=np.zeros(n, np.int64),
        paths=tuple(map(str, range(n))),
        rows=np.arange(n),
        pixels=np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8),
    )
    backbone = open_backbone("squeezenet1_0", weights="random", pool="avg")
    on_cpu = LocalEngine(CPU, "fp32", 50, 0).run(backbone, source, range(3))
    wanted = np.concatenate([part.features for part in on_cpu])
    said = []
    engine = LocalEngine(little_memory, "fp32", 64, 2, said.append, runtime=runtime)
    found = np.concatenate([part.features for part in engine.run(backbone, source, range(3))])
    backbone.network.to("cpu")
    assert "has too little memory" in said[0]
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
