"""The command `vectordbbench bq`."""

import os
from typing import Annotated, Unpack

import click
from pydantic import SecretStr

from ....cli.cli import (
    CommonTypedDict,
    cli,
    click_parameter_decorators_from_typed_dict,
    run,
)
from .. import DB


class BqTypedDict(CommonTypedDict):
    user_name: Annotated[str, click.option("--user-name", default="postgres", show_default=True)]
    password: Annotated[
        str,
        click.option(
            "--password",
            default=lambda: os.environ.get("PGPASSWORD", ""),
            show_default="$PGPASSWORD",
        ),
    ]
    host: Annotated[str, click.option("--host", default="localhost", show_default=True)]
    port: Annotated[int, click.option("--port", type=int, default=5432, show_default=True)]
    db_name: Annotated[str, click.option("--db-name", default="postgres", show_default=True)]
    column_type: Annotated[
        str,
        click.option(
            "--column-type",
            type=click.Choice(["vector", "halfvec"]),
            default="vector",
            show_default=True,
        ),
    ]
    recall: Annotated[
        float,
        click.option(
            "--recall",
            type=click.FloatRange(0, 1, min_open=True),
            default=0.98,
            show_default=True,
            help="Of the nearest rows, how many queries should find",
        ),
    ]
    maintenance_work_mem: Annotated[
        str | None, click.option("--maintenance-work-mem", help="Memory of the build, e.g. 4GB")
    ]
    max_parallel_maintenance_workers: Annotated[
        int | None,
        click.option(
            "--max-parallel-maintenance-workers", type=int, help="Workers that help the build"
        ),
    ]


@cli.command()
@click_parameter_decorators_from_typed_dict(BqTypedDict)
def Bq(**parameters: Unpack[BqTypedDict]):
    from .config import BqConfig, BqIndexConfig

    run(
        db=DB.Bq,
        db_config=BqConfig(
            db_label=parameters["db_label"],
            user_name=parameters["user_name"],
            password=SecretStr(parameters["password"]),
            host=parameters["host"],
            port=parameters["port"],
            db_name=parameters["db_name"],
        ),
        db_case_config=BqIndexConfig(
            column_type=parameters["column_type"],
            recall=parameters["recall"],
            maintenance_work_mem=parameters["maintenance_work_mem"],
            max_parallel_maintenance_workers=parameters["max_parallel_maintenance_workers"],
        ),
        **parameters,
    )
