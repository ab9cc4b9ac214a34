"""Device code only; README.md beside this maps equations to files."""
