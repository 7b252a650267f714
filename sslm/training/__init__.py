"""What happens while a model trains: the step, the optimizer, validation, anomalies, and the callbacks around them."""
