"""`python -m serving.client`: pictures from a server, and questions to it."""

import json
import sys
from dataclasses import asdict

import click

from serving.client.connection import READINESS
from serving.client.dataset.command import dataset
from serving.client.generate_command import generate
from serving.client.options import Connection, connection_options, json_option
from serving.client.reporting import one_line_errors

_QUESTION_SECONDS = 10.0


@click.group(context_settings={"max_content_width": 100})
def main() -> None:
    """Asks a simple-diffusion server for images."""


main.add_command(generate)
main.add_command(dataset)


@main.command()
@click.option(
    "--wait-seconds",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Wait this long for the server to become ready.",
)
@json_option
@connection_options(_QUESTION_SECONDS)
@one_line_errors
def health(*, connection: Connection, wait_seconds: float, as_json: bool) -> None:
    """Says whether the server is alive and ready; exit code 0 only if it (each of them) is."""
    servers = []
    for target in connection.targets:
        with connection.client(target) as client:
            if wait_seconds:
                client.wait_ready(wait_seconds)
            process, readiness = client.health(""), client.health(READINESS)
        servers.append({"target": target, "process": process, "ready": readiness})
        if not as_json:
            if len(connection.targets) > 1:
                click.echo(target)
            click.echo(f"process {process}\nready   {readiness}")
    ready = all(server["ready"] == "SERVING" for server in servers)
    if as_json:
        click.echo(json.dumps({"ready": ready, "servers": servers}, indent=2))
    if not ready:
        sys.exit(1)


@main.command()
@json_option
@connection_options(_QUESTION_SECONDS)
@one_line_errors
def models(*, connection: Connection, as_json: bool) -> None:
    """Lists the models of the server, the default first."""
    with connection.client() as client:
        catalog = client.models()
    if as_json:
        click.echo(json.dumps(asdict(catalog), indent=2))
        return
    for model in catalog.models:
        click.echo(
            f"{model.name} {model.version}: {model.width}x{model.height}"
            f" {'grey' if model.channels == 1 else f'{model.channels} channels'},"
            f" {model.default_sampler} {model.default_num_steps}"
            f" of {model.num_train_timesteps} steps, guidance {model.default_guidance_scale:g}"
        )
        for label, name in enumerate(model.label_names):
            click.echo(f"  {label}  {name}")
    click.echo(f"at most {catalog.max_images_per_request} images per request")


if __name__ == "__main__":
    main(prog_name="python -m serving.client")
