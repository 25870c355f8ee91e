"""Starts and babysits training runs on TPU VMs, GKE, SkyPilot, SLURM or this machine; start reading at run.py."""
