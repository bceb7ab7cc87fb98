import sys
from pathlib import Path

# The router's test helpers know each other by their plain names.
sys.path.append(str(Path(__file__).parents[1] / "router"))
