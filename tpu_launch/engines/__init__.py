"""One module per engine: what it would run, and a Job that runs it; job.py says what a Job is."""
