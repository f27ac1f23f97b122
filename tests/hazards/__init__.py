"""Bad inputs and faults, one test per row of the hazard table, named by its id."""
