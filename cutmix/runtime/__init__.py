"""What any command needs: files, checkpoints, devices, processes, signals, progress, seeds."""
