"""pdctl on many hosts: how long a start takes, and what a service loses while it is changed or hurt."""
