"""``python -m botvision`` is the command ``botvision``."""

from botvision.cli.main import main

main()
