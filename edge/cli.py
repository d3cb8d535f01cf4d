"""`edge`: one command a stage. Each imports its room only when it is called, so that `edge run` stays light."""

from __future__ import annotations

import typer

from edge.commands import device, looking, pool, training
from runtime.cli import Program

program = Program("edge", "Unlabeled frames → self-supervised YOLO → INT8 → camera → refresh: the whole loop.")
for command in (
    device.run, device.bench, device.doctor, training.split, training.pretrain, training.finetune, training.study,
    training.refresh, looking.probe, looking.check, looking.embed, looking.evaluate, device.demo,
):  # fmt: skip
    program.app.command()(command)
pool_program = typer.Typer(help="The frames worth keeping: add, look, check.", no_args_is_help=True)
for part in (pool.add, pool.info, pool.export, pool.check):
    pool_program.command()(part)
program.app.add_typer(pool_program, name="pool")


def main() -> None:
    """Entry point."""
    program.run()


if __name__ == "__main__":
    main()
