"""The bodies of each dialect: parsed leniently, documented exactly."""
