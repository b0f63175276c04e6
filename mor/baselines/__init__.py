"""What MoR is compared with: other mixtures of the same rewards, and the averaging of parameters."""
