"""ATLAS Supervisor: blue-green deploys on one machine, with the kernel as the router."""
