"""`pdctl schema`: the topology file's JSON Schema."""


def schema() -> None:
    """Print the JSON Schema of the topology file.

    Save it beside the file as topology.schema.json and begin the file with
    `# yaml-language-server: $schema=./topology.schema.json`: the editor then completes and checks the keys.
    """
    from pdctl.cli.terminal import Terminal
    from pdctl.topology.models import json_schema

    Terminal().print_json(json_schema())
