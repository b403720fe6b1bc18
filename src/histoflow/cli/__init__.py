"""The command line: each command parses, makes one public call, and says where the result is."""

from __future__ import annotations

import sys

import click

from histoflow._errors import HistoflowError, OptionError
from histoflow.cli import cohort_run, cohorts, evaluation, hest, machine, report, subspot
from histoflow.cli.root import cli

for _command in (
    *(cohorts.demo, cohorts.fit, cohorts.predict, evaluation.evaluate, hest.hest_bench, subspot.super_resolve),
    *(report.report, cohort_run.cohort),
    *(machine.encoders, machine.cache, machine.doctor),
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line: exit code 0 on success, 2 on wrong usage, 1 on any other error."""
    given = sys.argv[1:]
    debug = "--debug" in given
    arguments = [*(["--debug"] if debug else []), *(word for word in given if word != "--debug")]
    try:
        code = cli.main(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except click.Abort:
        sys.exit(1)
    except HistoflowError as err:
        if debug:
            raise
        click.echo(f"error: {err}", err=True)
        sys.exit(2 if isinstance(err, OptionError) else 1)
    except Exception as err:
        if debug:
            raise
        click.echo(f"error: {type(err).__name__}: {err}; run it again with --debug for the traceback", err=True)
        sys.exit(1)
