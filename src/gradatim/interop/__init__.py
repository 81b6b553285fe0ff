"""Files of other programs: ARPA."""
