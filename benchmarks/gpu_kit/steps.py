"""All steps, in their order: what would make later figures worthless comes first."""

from __future__ import annotations

from gpu_kit.kit import Step

__all__ = ["STEPS", "choose"]

STEPS = [
    Step("machine", "gpu_kit.machine:look", 20, "what there is"),
    Step("tests", "gpu_kit.machine:run_tests", 60, "tests marked gpu"),
    Step(
        "resize",
        "gpu_kit.copying:compare_resizes",
        25,
        "the device's resize against Pillow's, pixel by pixel",
    ),
    Step(
        "waits",
        "gpu_kit.copying:find_waits",
        25,
        "nothing waits for the device at the start of a warm batch",
    ),
    Step(
        "race", "gpu_kit.copying:race", 40, "distinct batches under way at once, against one by one"
    ),
    Step(
        "numbers",
        "gpu_kit.numbers:compare_precisions",
        40,
        "fp32 against float64, whatever TF32 is allowed",
    ),
    Step(
        "memory",
        "gpu_kit.memory:run_short_of_memory",
        60,
        "little memory: a sentence, never a traceback",
    ),
    Step(
        "compile",
        "gpu_kit.compiling:compile_once",
        75,
        "compiled once, no CUDA graph skipped",
        is_in_small=False,
    ),
    Step(
        "rates",
        "gpu_kit.rates:measure_rates",
        110,
        "images per second against ceilings and other loops",
    ),
    Step("profile", "gpu_kit.profiling:profile_batches", 25, "where the time of warm batches goes"),
    Step("resume", "gpu_kit.resuming:kill_and_resume", 45, "an extraction that is killed twice"),
    Step(
        "heads",
        "gpu_kit.heads:fit_heads",
        60,
        "Gram matrices and heads on the card and on the cores",
    ),
    Step(
        "main",
        "gpu_kit.main_job:run_main_job",
        60,
        "CIFAR-10 to the disk, then the few-shot protocol",
    ),
    # Last: skorch imports torch_geometric where that is installed, which may start CUDA.
    Step(
        "train",
        "gpu_kit.training:train_networks",
        60,
        "epochs against a bare loop, and resumed ones",
    ),
]


def choose(names: str | None, *, is_small: bool) -> list[Step]:
    """Choose steps by names with commas between; all of them by default.

    Raises
    ------
    SystemExit
        If there is none of a name.
    """
    if names is None:
        return [step for step in STEPS if step.is_in_small or not is_small]
    known = {step.name: step for step in STEPS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"no step {', '.join(unknown)}: choose from {', '.join(known)}")
    return [known[name] for name in wanted]
