"""The planner: how long a step of a layout takes, whether it fits, which layout to take. No torch."""
