"""Every plan of a small network, run once: the tables that search methods are compared on."""
