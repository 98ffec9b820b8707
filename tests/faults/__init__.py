"""What is done to the way of the data on purpose; all of it runs with ``make faults``."""
