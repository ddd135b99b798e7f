"""GREEN-CODE's agent: the environment, its rewards, PPO, and the policy that is deployed."""
