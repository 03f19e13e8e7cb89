"""The command ``botvision``: it parses, calls the Python API and prints."""
