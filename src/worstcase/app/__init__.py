"""The commands: settings by Hydra, a folder a job, skipping and resuming. Nothing else here knows Hydra."""
