"""Stage ``reward@<client>``: train one client's reward model."""

from tasks.project import command_line


def reward(client: str) -> None:
    """Train one client's reward model on its private pairs."""
    command_line.known_client(client)
    from tasks.stages.reward import train_reward

    train_reward(client)


if __name__ == "__main__":
    command_line.stage(reward)
