"""`miner report`: what a job's folder holds, as numbers, plots and one HTML page."""
