"""Clusters that come with the package; every file names the sources of its figures."""
