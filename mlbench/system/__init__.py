"""The machine: files, network, locks, signals. No face: import the file."""
