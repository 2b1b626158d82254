"""All steps, in their order: what would make later figures worthless comes first."""

from __future__ import annotations

from gpu_kit.compiling import compile_once
from gpu_kit.copying import compare_resizes, find_waits, race
from gpu_kit.heads import fit_heads
from gpu_kit.kit import Step
from gpu_kit.machine import look, run_tests
from gpu_kit.main_job import run_main_job
from gpu_kit.memory import run_short_of_memory
from gpu_kit.numbers import compare_precisions
from gpu_kit.profiling import profile_batches
from gpu_kit.rates import measure_rates
from gpu_kit.resuming import kill_and_resume
from gpu_kit.training import train_networks

__all__ = ["STEPS", "choose"]

STEPS = [
    Step("machine", look, 20, "what there is"),
    Step("tests", run_tests, 60, "tests marked gpu"),
    Step("resize", compare_resizes, 25, "the device's resize against Pillow's, pixel by pixel"),
    Step("waits", find_waits, 25, "nothing waits for the device at the start of a warm batch"),
    Step("race", race, 40, "distinct batches under way at once, against one by one"),
    Step("numbers", compare_precisions, 40, "fp32 against float64, whatever TF32 is allowed"),
    Step("memory", run_short_of_memory, 60, "little memory: a sentence, never a traceback"),
    Step("compile", compile_once, 75, "compiled once, no CUDA graph skipped", is_in_small=False),
    Step("rates", measure_rates, 110, "images per second against ceilings and other loops"),
    Step("profile", profile_batches, 25, "where the time of warm batches goes"),
    Step("resume", kill_and_resume, 45, "an extraction that is killed twice"),
    Step("heads", fit_heads, 60, "Gram matrices and heads on the card and on the cores"),
    Step("train", train_networks, 60, "epochs against a bare loop, and resumed ones"),
    Step("main", run_main_job, 60, "CIFAR-10 to the disk, then the few-shot protocol"),
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
