"""``gleaner study``: the command, its progress lines, and seeds side by side as processes of their own."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.monitoring.json_logging import redirect_to
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import prepare_environment, tracking_uri
from tasks.runtime.errors import UserError

if TYPE_CHECKING:
    from flows.study.runner import StudyStep
    from flows.study.workspaces import Study
    from tasks.study.results import StudyResults

_POLL_S = 0.2


def study(
    plan: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="What to compare; docs/studies holds two.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the study: campaigns, shared cache, results.", show_default="studies/<name>"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that the data's paths are relative to.", show_default="that of STUDY.yaml"),
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of finished parts, small files to commit; a study goes on from them.",
            show_default="<name>/parts beside STUDY.yaml",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds at work side by side.")] = 1,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Only this seed of the study, as for a second machine; repeatable.", show_default="all"),
    ] = None,
) -> None:
    """Compare ways of choosing and learning: arms x paired seeds x rounds, on data whose labels are known.

    The arms random and equal are always among them. An interrupted study resumes where it stopped.
    """
    console = SafeConsole()
    the_study = _load_study(plan, data, out, parts)
    seeds = _selected_seeds(the_study, seed or [], plan)
    prepare_environment(the_study.out)
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri(the_study.out)  # one database for all arms
    _print_plan(the_study, console)
    from flows.prefect_server import ensure_prefect_api

    ensure_prefect_api(the_study.out)
    from flows.study.runner import open_study_run, write_results

    open_study_run(the_study)
    if jobs > 1 and len(seeds) > 1:
        arguments = [str(plan), "--out", str(the_study.out), "--data", str(the_study.data)]
        arguments += ["--parts", str(the_study.parts)]
        run_in_processes(arguments, seeds, jobs)
    else:
        _run_in_sequence(the_study, seeds, console)
    if seed:
        console.print("Without --seed the same command writes the results.")
        return
    results = write_results(the_study)
    console.print(_summary_table(results))
    for message in results.failures:
        console.print(f"Stopped: {escape(message)}", style="yellow", soft_wrap=True)
    console.print(f"Results: {escape(str(the_study.results / 'README.md'))}", soft_wrap=True)


def _load_study(path: Path, data: Path | None, out: Path | None, parts: Path | None) -> "Study":
    from flows.study.workspaces import Study
    from flows.workspace.dvc import packaged_file
    from tasks.params.profiles import CPU_OVERRIDES
    from tasks.study.plan import load_study

    plan = load_study(path, packaged_file("params.yaml").read_text("utf-8"), own_data_settings=CPU_OVERRIDES)
    return Study(
        plan,
        data=(data or path.parent).resolve(),
        out=(out or Path("studies") / plan.name).resolve(),
        parts=(parts or path.parent / plan.name / "parts").resolve(),
    )


def _selected_seeds(the_study: "Study", requested: Sequence[int], path: Path) -> list[int]:
    for seed in requested:
        if seed not in the_study.plan.seeds:
            raise UserError(path, f"--seed is {seed}, expected one of seeds {the_study.plan.seeds}")
    return list(dict.fromkeys(requested)) or the_study.plan.seeds


def _print_plan(the_study: "Study", console: Console) -> None:
    from tasks.study.statistics import MIN_SEEDS

    plan = the_study.plan
    num_runs = len(plan.arms) * len(plan.seeds) * (plan.rounds + 1)
    console.print(f"[bold]{plan.name}[/bold]: {len(plan.arms)} arms x {len(plan.seeds)} seeds, {num_runs} rounds")
    if plan.added:
        console.print(f"Arms added, no study may leave them out: {', '.join(plan.added)}.", style="yellow")
    if len(plan.seeds) < MIN_SEEDS:
        console.print(f"Seeds are {len(plan.seeds)}: a claim needs at least {MIN_SEEDS}.", style="yellow")


def _run_in_sequence(the_study: "Study", seeds: Sequence[int], console: Console) -> None:
    from flows.study.runner import remaining_runs, run_seed, write_results

    remaining = remaining_runs(the_study, seeds)
    done = 0

    def on_start(step: "StudyStep") -> None:
        console.print(f"[cyan]{time.strftime('%H:%M:%S')}[/cyan] {_format_step(step)} ...", highlight=False)

    def on_finish(step: "StudyStep") -> None:
        nonlocal done
        done += step.arm != "full"
        console.print(
            f"         {_format_result(the_study, step)} [dim]({done} of {remaining} rounds)[/dim]", highlight=False
        )

    with redirect_to(_WarningHandler(console)):
        for seed in seeds:
            run_seed(the_study, seed, on_start, on_finish)
            if seed != seeds[-1]:
                write_results(the_study)  # so that a long study can be read while it runs


def _format_step(step: "StudyStep") -> str:
    return f"seed {step.seed}, {escape(step.arm)}" + ("" if step.arm == "full" else f", round {step.round_number}")


def _format_result(the_study: "Study", step: "StudyStep") -> str:
    from flows.study.parts import full_labels_path
    from flows.workspace.rounds import read_ledger
    from tasks.storage import files

    if step.arm == "full":
        full = files.read_json(full_labels_path(the_study, step.seed))
        figures = {"labels": full["labels"], "teacher": {"mAP": full["trainings"][0]["teacher"]["map"]}}
    else:
        figures = read_ledger(the_study.workspace(step.seed, step.arm), step.round_number)["metrics"]
    return f"{figures['labels']} labels, teacher mAP {figures['teacher']['mAP']:.1f}"


def run_in_processes(arguments: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Run one process per seed; seeds share no training, and all processes end with this one.

    Raises:
        UserError: names the seeds whose process failed, once all others are done.
    """
    from flows.runtime.subprocess import sigterm_as_systemexit

    running: dict[int, subprocess.Popen[bytes]] = {}
    with sigterm_as_systemexit():  # they close their runs at a Prefect server that ends with this process
        try:
            failed = _run_seed_processes(arguments, list(seeds), jobs, running)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    if failed:
        fix = "Their errors are above; the same command resumes them."
        raise UserError("study", f"failed seeds are {', '.join(failed)}, expected none", fix)


def _run_seed_processes(
    arguments: Sequence[str], pending: list[int], jobs: int, running: dict[int, subprocess.Popen[bytes]]
) -> list[str]:
    """Run all seeds, ``jobs`` at a time, and return the seeds that failed."""
    from flows.runtime.subprocess import set_pdeathsig

    failed: list[str] = []
    # Each its share of the cores: with a thread per core in every seed, their trainings would wait for each other.
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    while pending or running:
        while pending and len(running) < jobs:
            seed = pending.pop(0)
            command = [sys.executable, "-m", "flows.cli", "study", *arguments, "--seed", str(seed)]
            running[seed] = subprocess.Popen(command, env=environment, preexec_fn=set_pdeathsig(signal.SIGTERM))
        time.sleep(_POLL_S)
        for seed, process in list(running.items()):
            if process.poll() is not None:
                del running[seed]
                if process.returncode:
                    failed.append(f"{seed} (code {process.returncode})")
    return failed


class _WarningHandler(logging.Handler):
    """Show only warnings of what the rounds of a study log."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is None:  # the command prints an error once, at the end
            self._console.print(escape(record.getMessage()), style="yellow", soft_wrap=True)


def _summary_table(results: "StudyResults") -> Table:
    from tasks.study.results import adjusted_p_values, area, final_map, primary_comparison

    summary_table = Table(box=SIMPLE_HEAD, padding=(0, 1), caption_justify="left")
    summary_table.caption = "mAP in percent, mean over seeds; differences of the mean mAP over equal minutes"
    for header in ("arm", "seeds", "mean mAP", "last mAP", *(f"minus {name}" for name in results.config.all_baselines)):
        summary_table.add_column(header, justify="left" if header == "arm" else "right")
    adjusted = adjusted_p_values(results)
    for name, arm in results.arms.items():
        cells = []
        for reference in results.config.all_baselines:
            found = primary_comparison(results, name, reference) if name != reference else None
            verdict = found.corrected_verdict(adjusted.get((name, reference)), len(adjusted)) if found else ""
            cells.append(f"{found.mean:+.1f} {verdict}" if found else "-")
        figures = [f"{value:.1f}" if value is not None else "-" for value in (area(arm), final_map(arm))]
        summary_table.add_row(escape(name), str(len(arm.curves)), *figures, *cells)
    return summary_table
