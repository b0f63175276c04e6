"""Stage ``reward@<client>``: train one client's reward model."""

import sys

from tasks.rewards import train_reward
from tasks.runtime import flow, main


@flow
def reward(client: str) -> None:
    """Train one client's reward model on its private pairs."""
    train_reward(client)


if __name__ == "__main__":
    main(reward, sys.argv[1])
