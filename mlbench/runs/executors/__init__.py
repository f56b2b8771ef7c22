"""Where runs are made: this process, others, a Ray cluster."""
