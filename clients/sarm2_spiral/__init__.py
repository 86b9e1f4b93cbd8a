"""SPIRAL: a trainer that improves a policy from its own rollouts, with rewards from the service."""
