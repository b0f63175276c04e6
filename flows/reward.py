"""Stage ``reward@<client>``: train one client's reward model."""

from mor.config import load_params
from tasks.project import command_line


def reward(client: str) -> None:
    """Train one client's reward model on its private pairs."""
    command_line.known_client(client)
    from tasks.stages.reward import train_reward

    train_reward(load_params(), client)


if __name__ == "__main__":
    command_line.stage(reward)
