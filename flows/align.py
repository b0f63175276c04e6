"""Stage ``align``: GRPO rounds with the router's online refit."""

from mor.config import load_params
from tasks.project import command_line


def align() -> None:
    """GRPO rounds with the router refitted after each."""
    from tasks.stages.align import align_policy

    align_policy(load_params())


if __name__ == "__main__":
    command_line.stage(align)
