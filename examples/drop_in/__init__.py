"""Models of three kinds, each as it was and with its Dense layers sharded."""
