"""`lidar explain`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lidar_cli.cli.completion import SOURCES
from lidar_cli.runtime.streams import write_results


def explain(
    topic: Annotated[
        str | None,
        typer.Argument(
            help="A metric, recipe, system, setting or page [default: lists them].",
            metavar="[TOPIC]",
            autocompletion=SOURCES["topic"],
        ),
    ] = None,
) -> None:
    """What a metric, recipe, system, setting or exit status means.

    lidar explain lidar            a metric: its equation, and when to trust it
    lidar explain planning         how many images and views, and what they cost
    """
    from lidar_cli.explain import topics

    text = topics.list_topics() if topic is None else topics.explain(topic)
    if sys.stdout.isatty():
        from lidar_cli.report.markdown import print_markdown

        print_markdown(text)
    else:
        write_results(text)
