"""The command's subcommands, one file each."""
