"""The six stages: test, model, image, push, rollout, loadcheck. None knows another."""
