"""Where the points of a study are measured: processes of this machine, or a cluster's."""
