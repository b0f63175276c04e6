"""Stage ``align``: GRPO rounds with the router's online refit."""

from tasks.alignment import align_policy
from tasks.runtime import flow, main


@flow
def align() -> None:
    """GRPO rounds with the router refitted after each."""
    align_policy()


if __name__ == "__main__":
    main(align)
