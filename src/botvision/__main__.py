"""``python -m botvision`` is the command ``botvision``."""

from botvision.cli import main

main()
