"""The supervisor that runs on every host. Standard library only, Python >= 3.9."""
