"""`python -m nnssl COMMAND ...`: the same commands where no script is on the path."""

import sys

from nnssl import cli

COMMANDS = {
    name: getattr(cli, name)
    for name in (
        "pretrain",
        "inspect",
        "plan",
        "convert",
        "embed",
        "export",
        "study",
        "demo",
        "doctor",
        "report",
    )
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m nnssl {{{','.join(COMMANDS)}}} ...")
    command = sys.argv.pop(1)
    sys.argv[0] = f"nnssl_{command}"
    sys.exit(COMMANDS[command]())
