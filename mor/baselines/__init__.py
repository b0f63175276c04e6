"""The averaging of parameters, which MoR is compared with; other mixtures are in ``mor.alignment.mixtures``."""
